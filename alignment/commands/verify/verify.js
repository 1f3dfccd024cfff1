// The filters of the list: text, status, kind and domain.
function addFilters() {
  const tools = document.querySelector(".tools");
  if (!tools) return;
  const rows = [...document.querySelectorAll(".verdicts li")], input = tools.querySelector("input");
  const selects = [...tools.querySelectorAll("select")], texts = rows.map((row) => row.textContent.toLowerCase());

  function update() {
    const words = input.value.trim().toLowerCase();
    const fits = (row) => selects.every((s) => !s.value || JSON.parse(row.dataset[s.dataset.filter]).includes(s.value));
    let visible = 0;
    rows.forEach((row, index) => {
      row.hidden = !(texts[index].includes(words) && fits(row));
      visible += !row.hidden;
    });
    document.getElementById("shown").textContent = visible;
    document.querySelector(".empty").hidden = visible > 0;
    document.querySelector(".verdicts ol").scrollTop = 0;
  }

  for (const field of [input, ...selects]) field.addEventListener("input", update);
  tools.hidden = false;
  update(); // a reloaded page keeps what was chosen
}

addFilters();
document.documentElement.dataset.ready = "true";
