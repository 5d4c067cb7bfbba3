// Colours: Okabe and Ito's, told apart by all kinds of colour vision, and cividis for amounts. Lines also differ in
// dash, points in shape.

const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444"];
const DARK = ["#56b4e9", "#e69f00", "#2bc596", "#cc79a7", "#f0e442", "#ff8a3d", "#cccccc"];
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const SHAPES = ["circle", "rect", "triangle", "diamond", "pin", "arrow", "roundRect"];
const DASHES = ["solid", "dashed", "dotted", [8, 3, 2, 3], [2, 4], [12, 4]];

export const darkness = matchMedia("(prefers-color-scheme: dark)");

export function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    text: read("text"), faint: read("faint"), line: read("line"), surface: read("surface"),
    colours: darkness.matches ? DARK : LIGHT, amounts: CIVIDIS, font: getComputedStyle(document.body).fontFamily,
  };
}

export const shape = (at) => SHAPES[at % SHAPES.length];
export const dash = (at) => DASHES[at % DASHES.length];
export const colour = (at, look) => look.colours[at % look.colours.length];
