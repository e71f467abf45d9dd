// What lies beside the page, loaded when it is looked at. A page opened from disk may load scripts and pictures only.

const KEPT = 60; // scripts' contents, the last ones used; a head of 64 modes takes half a megabyte
const TYPES = { int8: Int8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array };

const qkjax = {
  arrived: new Map(),
  inside: null, // of a page in a notebook cell, which has everything inside: { hash, pictures }
  take(key, what, text) {
    this.arrived.set(key, { ...what, text });
  },
};

/** The bytes of a text that has seven bits of them in each character. */
function bytesOf(text) {
  const bytes = new Uint8Array((text.length * 7) >> 3);
  let held = 0;
  let bits = 0;
  let at = 0;
  for (let i = 0; i < text.length; i++) {
    held = (held << 7) | text.charCodeAt(i);
    bits += 7;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = held >> bits;
    held &= (1 << bits) - 1;
  }
  return bytes;
}

async function unpacked({ facts, arrays, text }) {
  const opened = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(opened).arrayBuffer();
  const found = { facts };
  let at = 0;
  for (const [name, type, shape] of arrays) {
    const count = shape.reduce((product, length) => product * length, 1);
    const size = count * TYPES[type].BYTES_PER_ELEMENT;
    found[name] = new TYPES[type](buffer.slice(at, at + size));
    at += size;
  }
  return found;
}

function scriptOf(key) {
  return new Promise((resolve, reject) => {
    if (qkjax.arrived.has(key)) return resolve();
    const element = h("script", { src: `data/${key}.js` });
    element.onload = () => (element.remove(), resolve());
    element.onerror = () => (
      element.remove(),
      reject(new Error(`data/${key}.js is missing: the folder "data" of this report must lie beside the page, whole.`))
    );
    document.head.append(element);
  });
}

const damaged = (key) => new Error(`data/${key}.js is damaged: make the report again, or copy it again.`);

const loaded = new Map();

/** What a script holds: facts and arrays by name. */
function load(key) {
  const known = loaded.get(key);
  loaded.delete(key);
  const promise =
    known ||
    scriptOf(key).then(() => {
      const packed = qkjax.arrived.get(key);
      if (!qkjax.inside) qkjax.arrived.delete(key);
      if (!packed) throw damaged(key);
      return unpacked(packed).catch(() => Promise.reject(damaged(key)));
    });
  loaded.set(key, promise); // a Map keeps the order of use
  promise.catch(() => loaded.delete(key));
  if (loaded.size > KEPT) loaded.delete([...loaded.keys()].find((old) => !old.endsWith("/model")));
  return promise;
}

const two = (x) => String(x).padStart(2, "0");
const headKey = (model, layer, head) => `${model.key}/L${two(layer)}_H${two(head)}`;

const pictures = new Map();

/** A picture of a model's folder, or null if it is not there. */
function picture(model, file) {
  const path = `data/${model.key}/${file}`;
  if (!pictures.has(path)) {
    pictures.set(
      path,
      new Promise((resolve) => {
        const image = new Image();
        image.onload = () => resolve(image);
        image.onerror = () => resolve(null);
        image.src = qkjax.inside?.pictures[path] ?? path;
      }),
    );
    if (pictures.size > 400) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(path);
}
