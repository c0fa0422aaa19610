// Undo and redo: the states of something that is edited, newest last, of which one is shown.

export class History {
  constructor(first, limit = 200) {
    this.states = [first];
    this.at = 0;
    this.limit = limit;
  }

  // Adds a state after the one that is shown, which forgets what was undone.
  push(state) {
    this.states.splice(this.at + 1, Infinity, state);
    if (this.states.length > this.limit) this.states.shift();
    this.at = this.states.length - 1;
  }

  get canUndo() { return this.at > 0; }
  get canRedo() { return this.at < this.states.length - 1; }

  undo() { return this.canUndo ? this.states[--this.at] : null; }
  redo() { return this.canRedo ? this.states[++this.at] : null; }
}
