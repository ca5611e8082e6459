// Shared by every page: its data, helpers to build the document, and the theme switch.
const DATA = JSON.parse(document.getElementById("data").textContent);

/** Return the element with this id. */
const byId = (id) => document.getElementById(id);

/** Make an element. Text goes in as text, never as HTML. */
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Make an SVG element. */
function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Make the span of a token; one with a control of direction (an override, an embedding) is known by its class. */
function tokenEl(text, attributes) {
  const node = el("span", attributes, text);
  node.classList.toggle("turning", /[\u202a-\u202e\u2066-\u2069]/.test(text));
  return node;
}

/** What the address says behind its #, as names and values, so that a view can be sent as a link; set loads nothing. */
const ADDRESS = {
  values: new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : ""),
  get: (name) => ADDRESS.values.get(name),
  set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (value === null || value === "") ADDRESS.values.delete(name);
      else ADDRESS.values.set(name, value);
    }
    try {
      history.replaceState(null, "", `#${ADDRESS.values}`);
    } catch {
      // A page inside a notebook has no address of its own.
    }
  },
};

(function themeSwitch() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${button.textContent.toLowerCase()} theme`);
  };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    ADDRESS.set({ theme: document.documentElement.dataset.theme });
    show();
  });
  if (["light", "dark"].includes(ADDRESS.get("theme"))) document.documentElement.dataset.theme = ADDRESS.get("theme");
  system.addEventListener("change", show);
  show();
})();
