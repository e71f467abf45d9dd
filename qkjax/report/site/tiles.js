// Pictures with maps over them.

const LIMITS = [0.3, 0.95]; // percentiles between which a map's brightness runs, as in the figures
const GREYED = 0.55; // brightness of the picture under the colours

function brightness(values) {
  const sorted = Float32Array.from(values).sort();
  const [low, high] = LIMITS.map((share) => {
    const at = share * (sorted.length - 1);
    const below = Math.floor(at);
    return sorted[below] + (at - below) * (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below]);
  });
  return Float32Array.from(values, (value) =>
    high > low ? Math.min(Math.max((value - low) / (high - low), 0), 1) : 0,
  );
}

/** A small canvas with a pixel for each patch. */
function pixels([rows, columns], colourOf) {
  const canvas = h("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) image.data.set([...colourOf(i), 255], 4 * i);
  context.putImageData(image, 0, 0);
  return canvas;
}

function sized(canvas, grid) {
  const width = Math.min(
    Math.max(grid[1], Math.round((canvas.dataset.side || 224) * Math.min(window.devicePixelRatio || 1, 2))),
    640,
  );
  canvas.width = width;
  canvas.height = Math.round((width * grid[0] * canvas.dataset.patchRows) / (grid[1] * canvas.dataset.patchColumns));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  return context;
}

function stretched(context, small) {
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}

const draw = {
  plain(canvas, grid, image) {
    const context = sized(canvas, grid);
    if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  },
  /** Red where the query map is high, cyan where the key map is, white both: what the figures show. */
  overlay(canvas, grid, image, query, key) {
    const context = sized(canvas, grid);
    greyed(context, image);
    const [red, cyan] = [brightness(query), brightness(key)];
    context.globalCompositeOperation = "screen";
    stretched(
      context,
      pixels(grid, (i) => [255 * red[i], 255 * cyan[i], 255 * cyan[i]]),
    );
  },
  /** A map with both signs, white at 0. */
  signed(canvas, grid, values) {
    const most = values.reduce((size, value) => Math.max(size, Math.abs(value)), 0) || 1;
    stretched(
      sized(canvas, grid),
      pixels(grid, (i) => mixed(SIGNED, (values[i] / most + 1) / 2)),
    );
  },
  amount(canvas, grid, values) {
    const most = values.reduce((size, value) => Math.max(size, value), 0) || 1;
    stretched(
      sized(canvas, grid),
      pixels(grid, (i) => mixed(AMOUNT, values[i] / most)),
    );
  },
  /** Attention as light on the greyed picture. */
  lit(canvas, grid, image, values) {
    const context = sized(canvas, grid);
    greyed(context, image);
    const most = values.reduce((size, value) => Math.max(size, value), 0) || 1;
    context.globalCompositeOperation = "screen";
    stretched(
      context,
      pixels(grid, (i) => [255, 190, 0].map((colour) => (colour * values[i]) / most)),
    );
  },
};

function greyed(context, image) {
  const { width, height } = context.canvas;
  const fill = (operation, colour) => {
    context.globalCompositeOperation = operation;
    context.fillStyle = colour;
    context.fillRect(0, 0, width, height);
  };
  fill("source-over", "#000");
  if (!image) return;
  context.drawImage(image, 0, 0, width, height);
  fill("saturation", "#808080");
  fill("multiply", `rgb(${[GREYED, GREYED, GREYED].map((x) => 255 * x)})`);
}

function canvasOf(model, side, label) {
  const [patchRows, patchColumns] = model.facts.patch;
  const [rows, columns] = model.facts.grid;
  // Of its shape from the first, or the page would jump when it is drawn.
  return h("canvas", {
    width: columns * patchColumns,
    height: rows * patchRows,
    role: "img",
    "aria-label": label,
    "data-side": side,
    "data-patch-rows": patchRows,
    "data-patch-columns": patchColumns,
  });
}

function hidden(canvas) {
  canvas.removeAttribute("role");
  canvas.setAttribute("aria-hidden", "true"); // what it shows is said beside it
  return canvas;
}

/** A canvas in which patches can be pointed at: by mouse, by finger, and with the arrow keys when it has the focus. */
function pointable(canvas, grid, { id, label, onpoint, onpick }) {
  const mark = h("span", { class: "mark", hidden: true });
  const box = h("div", { class: "pointable", tabindex: 0, role: "application", "aria-label": label, id }, canvas, mark);
  let at = [grid[0] >> 1, grid[1] >> 1];
  const point = (row, column) => {
    at = [clamp(row, grid[0]), clamp(column, grid[1])];
    onpoint(...at);
  };
  const under = (event) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [
      Math.floor(((event.clientY - top) / height) * grid[0]),
      Math.floor(((event.clientX - left) / width) * grid[1]),
    ];
  };
  box.addEventListener("pointermove", (event) => point(...under(event)));
  box.addEventListener("click", (event) => {
    if (event.detail) point(...under(event)); // a click by key has no place
    onpick?.(...at);
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step && !event.shiftKey) {
      point(at[0] + step[0], at[1] + step[1]);
      event.preventDefault();
      event.stopPropagation();
    } else if (onpick && (event.key === "Enter" || event.key === " ")) {
      onpick(...at);
      event.preventDefault();
    }
  });
  box.start = (row, column) => (at = [row, column]);
  box.mark = (row, column) => {
    mark.hidden = false;
    const [height, width] = grid.map((count) => 100 / count);
    const at = `left: ${column * width}%; top: ${row * height}%;`;
    mark.style.cssText = `${at} width: ${width}%; height: ${height}%`;
  };
  return box;
}
