() => {
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const read = color => (color.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]); };
  const ground = element => {
    const box = element.matches("text.in, text.in-hot") ? element.previousElementSibling : null;
    let below = [255, 255, 255];
    const line = [];
    for (let at = element; at; at = at.parentElement) line.unshift(at);
    for (const at of line) below = over(read(getComputedStyle(at).backgroundColor), below);
    if (box) { const style = getComputedStyle(box); below = over([...read(style.fill).slice(0, 3), Number(style.fillOpacity)], below); }
    return below;
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.matches("title, desc, style") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), below = ground(element);
    const ink = over(read(element.matches("text") ? style.fill : style.color), below);
    const [light, dark] = [luminance(ink), luminance(below)].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) faint.push([element.textContent.trim().slice(0, 40), contrast.toFixed(2)]);
  }
  const all = selector => [...document.querySelectorAll(selector)];
  return {
    faint,
    background: read(getComputedStyle(document.body).backgroundColor),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    language: document.documentElement.lang,
    links: all("nav a").map(each => all(each.getAttribute("href")).length),
    sections: all("h2").map(each => each.id),
    drawings: all("svg.chart").length,
    nameless: all("svg.chart").filter(each => !each.querySelector(":scope > title")?.textContent || !each.querySelector(":scope > desc")?.textContent).length,
    headless: all("table").filter(each => !each.querySelector("thead th[scope=col]") || !each.querySelector("tbody th[scope=row]") || !each.caption).length,
    pictures: all("img").map(each => [each.complete && each.naturalWidth > 0, each.alt !== ""]),
    small: all("svg.chart text, p, td, th, li, small").filter(each => each.getClientRects().length && each.getBoundingClientRect().height < 8).length,
    evidence: all("#evidence ~ .tables table:first-child tr").map(row => [...row.cells].map(cell => cell.innerText.trim().split("\n"))),
  };
}
