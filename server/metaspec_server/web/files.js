// The controls that open and save, and the link that holds the structure.

import { choose, ofRun } from "./chooser.js";
import { $ } from "./dom.js";
import { fragmentOf, structureOf } from "./links.js";
import { openFile, openFolder } from "./opening.js";
import { saveLayout, saveNpy, savePicture, savePlot, saveTable } from "./saving.js";

export class Files {
  constructor(studio) {
    this.studio = studio;
    const editor = () => [studio.editor.structure, studio.editor.pixels];
    const saves = {
      npy: () => saveNpy(...editor()),
      design: () => saveNpy(...editor(), "design"),
      png: () => savePicture(...editor()),
      gds: () => saveLayout(studio.editor.structure, $("model").value),
      csv: () => saveTable(studio.spectra),
      plot: () => savePlot($("plot"), studio.spectra.channels, studio.spectra.source),
      link: () => this.copyLink(),
    };
    for (const [name, save] of Object.entries(saves)) {
      $(`save-${name}`).addEventListener("click", () => this.attempt(save));
    }
    for (const [name, open] of [["open", (files) => this.file(files[0])], ["open-folder", (files) => this.folder(files)]]) {
      $(name).addEventListener("change", async (event) => {
        const files = [...event.target.files];
        event.target.value = "";
        if (files.length) await this.attempt(() => open(files));
      });
    }
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      if (file) this.attempt(() => this.file(file));
    });
    window.addEventListener("hashchange", () => this.attempt(() => this.followLink()));
  }

  async attempt(action) {
    this.studio.note("");
    $("note").setAttribute("aria-busy", "true");
    try {
      await action();
    } catch (error) {
      this.studio.note(error.message, true);
    }
    $("note").setAttribute("aria-busy", "false");
  }

  async file(file) {
    const { pixels } = this.studio.editor;
    const opened = await openFile(file, pixels, $("model").value);
    const number = opened.count === 1 ? 0
      : await choose(opened, pixels, `${file.name}: ${opened.count} structures`, [], (n) => [`structure ${n}`]);
    this.take(opened, number);
  }

  async folder(files) {
    const { pixels } = this.studio.editor;
    const opened = await openFolder(files, pixels);
    const { remarks, lines } = ofRun(opened);
    this.take(opened, await choose(opened, pixels, `Run ${opened.name}: ${opened.count} designs`, remarks, lines));
  }

  take(opened, number) {
    if (number === null) return;
    this.studio.editor.set(opened.structure(number));
    this.studio.note(opened.remark(number));
  }

  // Keeps the structure in the address: a reload, or the address in another window, shows it again.
  async remember() {
    const { structure } = this.studio.editor;
    this.fragment = await fragmentOf(structure);
    if (structure === this.studio.editor.structure) history.replaceState(null, "", this.fragment);
  }

  async followLink() {
    if (location.hash === this.fragment) return false;
    const structure = await structureOf(location.hash, this.studio.editor.pixels);
    if (structure) this.studio.editor.set(structure);
    return structure !== null;
  }

  async copyLink() {
    await this.remember();
    const address = new URL(location.href);
    const { conditions, model } = this.studio;
    if (model) address.search = conditions.query(model);
    history.replaceState(null, "", address);
    const copied = await navigator.clipboard?.writeText(address.href).then(() => true, () => false);
    this.studio.note(copied ? "The link is copied: it holds the structure." : "Copy the address of this page: it holds the structure.");
  }
}
