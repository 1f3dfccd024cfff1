// The list of what fell can be held to one filter.
function addFilter() {
  const tools = document.querySelector(".tools"), choice = tools.querySelector("select");
  const rows = [...document.querySelectorAll("#dropped tbody tr")];

  function update() {
    let visible = 0;
    for (const row of rows) {
      row.hidden = Boolean(choice.value) && row.dataset.filter !== choice.value;
      visible += !row.hidden;
    }
    document.getElementById("shown").textContent = visible;
  }

  choice.addEventListener("input", update);
  tools.hidden = false;
  update(); // a reloaded page keeps what was chosen
}

addFilter();
