"use strict";
// Viewers of volumes: three linked planes each, several volumes side by side. Volumes are gzipped bytes in base64 in the
// page itself, so that it works from a file without any server.

const PLANES = [ // name, axis across which to cut, axes along the picture's width and height
  { name: "sagittal", across: 0, width: 1, height: 2 },
  { name: "coronal", across: 1, width: 0, height: 2 },
  { name: "axial", across: 2, width: 0, height: 1 },
];

const decoded = new Map();

async function voxels(id) {
  if (!decoded.has(id)) {
    const text = document.getElementById(id).textContent;
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    decoded.set(id, new Response(stream).arrayBuffer().then((buffer) => new Uint8Array(buffer)));
  }
  return decoded.get(id);
}

async function content(volume) {
  if (!volume.minus) return voxels(volume.id);
  const [one, other] = await Promise.all([volume.id, volume.minus].map(voxels));
  return Uint8Array.from(one, (value, i) => 127.5 + (value - other[i]) / 2);
}

class Viewer {
  constructor(root) {
    this.root = root;
    this.cases = JSON.parse(root.querySelector("script").textContent);
    this.place = [0.5, 0.5, 0.5]; // of the cross, as shares of right, anterior, superior
    this.window = { level: 127.5, width: 255 };
    this.number = 0;
    this.choice = root.querySelector("select");
    this.cases.forEach((one, i) => this.choice.add(new Option(one.title, i)));
    this.choice.onchange = () => this.show(Number(this.choice.value));
    root.querySelector(".previous").onclick = () => this.step(-1);
    root.querySelector(".next").onclick = () => this.step(1);
    root.querySelector(".reset").onclick = () => { this.window = { level: 127.5, width: 255 }; this.place = [0.5, 0.5, 0.5]; this.draw(); };
    this.show(0);
  }

  step(by) {
    this.show((this.number + by + this.cases.length) % this.cases.length);
  }

  async show(number) {
    this.number = number;
    this.choice.value = number;
    const one = this.cases[number];
    this.root.querySelector(".text").textContent = one.text;
    const list = this.root.querySelector(".volumes");
    const panels = await Promise.all(one.volumes.map((volume) => this.panel(volume)));
    if (this.number !== number) return; // another case was chosen meanwhile
    list.replaceChildren(...panels.map((panel) => panel.element));
    this.panels = panels;
    this.root.dataset.shown = number;
    this.draw();
  }

  async panel(volume) {
    const data = await content(volume);
    const element = document.createElement("div");
    element.className = "volume";
    element.innerHTML = "<h4></h4><div class='planes'></div>";
    element.firstChild.textContent = volume.name;
    const planes = PLANES.map((plane) => this.plane(plane, volume, data));
    element.lastChild.append(...planes.map((plane) => plane.element));
    return { element, planes };
  }

  plane(plane, volume, data) {
    const element = document.createElement("div");
    element.className = "plane";
    const canvas = document.createElement("canvas");
    const slider = document.createElement("input");
    canvas.width = volume.shape[plane.width];
    canvas.height = volume.shape[plane.height];
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${plane.name} slice of ${volume.name}`);
    const mm = (axis) => volume.shape[axis] * volume.spacing[axis];
    canvas.style.aspectRatio = `${mm(plane.width)} / ${mm(plane.height)}`;
    slider.type = "range";
    slider.min = 0;
    slider.max = volume.shape[plane.across] - 1;
    slider.setAttribute("aria-label", `${plane.name} slice`);
    slider.oninput = () => this.move(plane.across, (Number(slider.value) + 0.5) / volume.shape[plane.across]);
    canvas.onwheel = (event) => { event.preventDefault(); this.scroll(plane, volume, Math.sign(event.deltaY)); };
    canvas.onkeydown = (event) => this.key(event, plane, volume);
    this.pointer(canvas, plane);
    element.append(canvas, slider);
    return { element, canvas, slider, plane, volume, data };
  }

  scroll(plane, volume, by) {
    this.move(plane.across, this.place[plane.across] + by / volume.shape[plane.across]);
  }

  key(event, plane, volume) {
    const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (by) { event.preventDefault(); this.scroll(plane, volume, by); }
    const next = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (next) { event.preventDefault(); this.step(next); }
  }

  pointer(canvas, plane) {
    let start = null;
    canvas.onpointerdown = (event) => {
      canvas.setPointerCapture(event.pointerId);
      start = { x: event.clientX, y: event.clientY, window: { ...this.window }, moved: false };
    };
    canvas.onpointermove = (event) => {
      if (!start) return;
      const dx = event.clientX - start.x, dy = event.clientY - start.y;
      if (Math.abs(dx) + Math.abs(dy) > 4) start.moved = true;
      if (!start.moved) return;
      this.window = { width: Math.max(8, start.window.width + 2 * dx), level: start.window.level + dy };
      this.draw();
    };
    canvas.onpointerup = (event) => {
      if (start && !start.moved) {
        const box = canvas.getBoundingClientRect();
        this.place[plane.width] = (event.clientX - box.left) / box.width;
        this.place[plane.height] = 1 - (event.clientY - box.top) / box.height;
        this.draw();
      }
      start = null;
    };
    canvas.onpointercancel = () => { start = null; };
  }

  move(axis, share) {
    this.place[axis] = Math.min(0.999999, Math.max(0, share));
    this.draw();
  }

  draw() {
    const { level, width } = this.window;
    const shade = Uint8ClampedArray.from({ length: 256 }, (_, v) => ((v - level) / width + 0.5) * 255);
    this.root.dataset.window = `${Math.round(level)} ${Math.round(width)}`;
    for (const panel of this.panels || []) for (const one of panel.planes) this.drawPlane(one, shade);
  }

  drawPlane({ canvas, slider, plane, volume, data }, shade) {
    const [nx, ny, nz] = volume.shape, strides = [ny * nz, nz, 1];
    const slice = Math.min(volume.shape[plane.across] - 1, Math.floor(this.place[plane.across] * volume.shape[plane.across]));
    slider.value = slice;
    const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
    for (let row = 0; row < canvas.height; row++) {
      const base = slice * strides[plane.across] + (canvas.height - 1 - row) * strides[plane.height];
      for (let column = 0; column < canvas.width; column++) {
        const at = 4 * (row * canvas.width + column), value = shade[data[base + column * strides[plane.width]]];
        image.data[at] = image.data[at + 1] = image.data[at + 2] = value;
        image.data[at + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    context.fillStyle = "rgba(110, 168, 254, 0.55)";
    const x = this.place[plane.width] * canvas.width, y = (1 - this.place[plane.height]) * canvas.height;
    context.fillRect(Math.floor(x), 0, 1, canvas.height);
    context.fillRect(0, Math.floor(y), canvas.width, 1);
  }
}

document.querySelectorAll(".viewer").forEach((root) => { root.viewer = new Viewer(root); });
