const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// el("td.num", text or children...) never parses HTML, so that texts can hold anything
function el(spec, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
// what a person or a model said, in whatever direction it is read
function words(node, text) {
  node.append(text);
  node.dir = "auto";
  return node;
}
const isNumber = (value) => typeof value === "number";
const fixed = (value, digits = 1) => (isNumber(value) ? value.toFixed(digits).replace("-", "−") : "–");
