export const byId = (id) => document.getElementById(id);

// el("span.token.bos", text or children...) never parses HTML: what a model writes can hold anything
export function el(spec, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  node.append(...children);
  return node;
}

export function showError(title, text) {
  byId("banner-title").textContent = title;
  byId("banner-text").textContent = text;
  byId("banner").hidden = false;
}

export function hideMessages() {
  byId("banner").hidden = true;
  byId("notice").hidden = true;
}

export function showNotice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = false;
}
