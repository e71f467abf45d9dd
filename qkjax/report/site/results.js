// What other commands found out of this model: their figures and tables.

async function resultsView(c, model) {
  const found = model.facts.results;
  if (!found.length)
    return [
      h("h2", {}, "Other results"),
      h(
        "p",
        {},
        "This report has none: run qkjax preference, objects, tokens or ablate on the model, then qkjax report again.",
      ),
    ];
  return [
    h("h2", {}, "Other results"),
    ...found.map(({ title, file, figures, rows }) =>
      h(
        "section",
        {},
        h("h3", {}, title),
        h(
          "div",
          { class: "figures" },
          figures.map(({ file: name, alt }) =>
            h(
              "figure",
              {},
              h("img", { src: `data/${model.key}/${name}`, alt, loading: "lazy" }),
              h("figcaption", {}, alt),
            ),
          ),
        ),
        rows.length
          ? h(
              "details",
              {},
              h("summary", {}, `${file}: ${rows.length - 1} rows`),
              h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": file }, tableOf(rows)),
            )
          : null,
      ),
    ),
  ];
}

function tableOf([head, ...rows]) {
  const short = (text) =>
    text !== "" && Number.isFinite(Number(text)) && !Number.isInteger(Number(text)) ? number(Number(text)) : text;
  return h(
    "table",
    {},
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        head.map((text) => h("th", { scope: "col" }, text.replaceAll("_", " "))),
      ),
    ),
    h(
      "tbody",
      {},
      rows.map((row) =>
        h(
          "tr",
          {},
          row.map((text) => h("td", {}, short(text))),
        ),
      ),
    ),
  );
}
