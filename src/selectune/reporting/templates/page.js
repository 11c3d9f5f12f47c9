"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const label = () => { button.textContent = current() === "dark" ? "Light" : "Dark"; };
  button.addEventListener("click", () => { root.dataset.theme = current() === "dark" ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  label();

  const rows = [...document.querySelectorAll(".samples tbody tr")];
  const selects = [...document.querySelectorAll(".filters select")];
  const shown = document.getElementById("shown");
  const filter = () => {
    let count = 0;
    for (const row of rows) {
      const fits = selects.every((select) => select.value === "" || row.dataset[select.name] === select.value);
      row.classList.toggle("hidden", !fits);
      count += fits ? 1 : 0;
    }
    shown.textContent = count + " of " + rows.length + " shown";
  };
  for (const select of selects) select.addEventListener("change", filter);
  if (rows.length) filter();
  const printing = () => { for (const one of document.querySelectorAll("details.prints")) one.open = true; };
  addEventListener("beforeprint", printing);
})();
