"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const items = read("items");
  const pictures = read("pictures");
  const groups = [...document.querySelectorAll(".group")];
  document.documentElement.classList.add("is-scripted");

  // Each picture is in the file once; a row loads its pictures when it comes near the window.

  const fill = (group) => {
    for (const image of group.querySelectorAll("img:not([src])")) {
      image.decoding = "async";
      image.src = pictures[image.dataset.picture];
    }
  };
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        fill(target);
        near.unobserve(target);
      }
    },
    { rootMargin: "100% 0px" },
  );
  for (const group of groups) near.observe(group);
  addEventListener("beforeprint", () => groups.forEach(fill));

  // Keyboard: one tab stop a row; arrows move within it and between rows.

  const cardsOf = (group) => [...group.querySelectorAll(".card")];

  const neighborOf = (card, key) => {
    const group = card.closest(".group");
    const cards = cardsOf(group);
    const at = cards.indexOf(card);
    if (key === "ArrowRight") return cards[at + 1];
    if (key === "ArrowLeft") return cards[at - 1];
    if (key === "Home") return cards[0];
    if (key === "End") return cards.at(-1);
    const shown = groups.filter((other) => !other.hidden);
    const there = shown[shown.indexOf(group) + (key === "ArrowDown" ? 1 : -1)];
    return there && (cardsOf(there)[at] ?? cardsOf(there).at(-1));
  };

  const focusCard = (card) => {
    for (const other of cardsOf(card.closest(".group"))) other.tabIndex = other === card ? 0 : -1;
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest", inline: "nearest" });
  };

  const KEYS = new Set(["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"]);

  const targetOf = (event, card) => {
    if (!card || !KEYS.has(event.key) || event.ctrlKey || event.altKey || event.metaKey) return null;
    event.preventDefault();
    return neighborOf(card, event.key);
  };

  byId("rows").addEventListener("keydown", (event) => {
    const next = targetOf(event, event.target.closest(".card"));
    if (next) focusCard(next);
  });

  // Details of one card. All text is set as textContent, so that nothing of a corpus is parsed as HTML.

  const dialog = byId("detail");
  let current = null;

  const element = (name, text, lang) => {
    const made = document.createElement(name);
    made.textContent = text;
    made.dir = "auto";
    if (lang) made.lang = lang;
    return made;
  };

  const captionLine = ([text, lang]) => {
    const line = element("li", text, lang);
    if (!lang) return line;
    const tag = element("span", lang, "en");
    tag.className = "lang";
    line.prepend(tag, " ");
    return line;
  };

  const open = (card) => {
    const item = items[card.dataset.item];
    const picture = byId("detail-picture");
    picture.hidden = item.picture === null;
    if (!picture.hidden) picture.src = pictures[item.picture];
    picture.alt = item.captions[0]?.[0] ?? item.name;
    const cosine = card.querySelector(".cosine")?.textContent.trim();
    byId("detail-name").textContent = item.name;
    byId("detail-place").textContent = [item.place, cosine].filter(Boolean).join(" · ");
    byId("detail-reason").textContent = item.reason;
    const remarks = [...card.querySelectorAll(".remark:not(.fault)")].map((remark) => {
      const made = element("li", remark.textContent);
      made.className = "remark";
      return made;
    });
    byId("detail-remarks").replaceChildren(...remarks);
    byId("detail-captions").replaceChildren(...item.captions.map(captionLine));
    current = card;
    if (!dialog.open) dialog.showModal();
    byId("sheet").scrollTop = 0;
  };

  byId("rows").addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    focusCard(card);
    open(card);
  });
  dialog.addEventListener("keydown", (event) => {
    if (!event.key.endsWith("Left") && !event.key.endsWith("Right")) return; // the other keys scroll it
    const next = targetOf(event, current);
    if (next) open(next);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // its backdrop
  });
  dialog.addEventListener("close", () => focusCard(current));
  byId("close").addEventListener("click", () => dialog.close());

  // Filter: hide rows without a match.

  const filter = byId("filter");
  if (!filter) return;
  byId("tools").hidden = false;
  const texts = items.map((item) =>
    [item.name, ...item.captions.map(([text]) => text)].join("\n").toLocaleLowerCase(),
  );
  filter.addEventListener("input", () => {
    const word = filter.value.trim().toLocaleLowerCase();
    let count = 0;
    for (const group of groups) {
      const fits =
        !word || cardsOf(group).some((card) => texts[card.dataset.item].includes(word));
      group.hidden = !fits;
      count += fits;
    }
    const shown = count.toLocaleString("en");
    byId("count").textContent = word ? `${shown} of ${groups.length.toLocaleString("en")} rows` : "";
  });
})();
