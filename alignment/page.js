function element(name, className, text) {
  const node = document.createElement(name);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function addThemeButton(button) {
  const modes = ["auto", "light", "dark"];
  let mode = 0;
  button.addEventListener("click", () => {
    mode = (mode + 1) % modes.length;
    document.documentElement.style.colorScheme = mode ? modes[mode] : "";
    button.textContent = "Theme: " + modes[mode];
  });
  button.hidden = false;
}

// A button below each text that is shown cut off.
function addExpanders() {
  for (const long of document.querySelectorAll(".long")) {
    const more = element("button", "more", "Show all");
    more.type = "button";
    more.addEventListener("click", () => {
      more.textContent = long.classList.toggle("open") ? "Show less" : "Show all";
    });
    long.append(more);
  }
}

addThemeButton(document.getElementById("theme"));
addExpanders();
