// A policy of policy.json and policy.onnx: observations in, what the world is told out.

const ARRAYS = {
  float32: [Float32Array, "float32"],
  float64: [Float64Array, "float64"],
  uint8: [Uint8Array, "uint8"],
  int8: [Int8Array, "int8"],
  uint16: [Uint16Array, "uint16"],
  int16: [Int16Array, "int16"],
  uint32: [Uint32Array, "uint32"],
  int32: [Int32Array, "int32"],
  int64: [BigInt64Array, "int64"],
  uint64: [BigUint64Array, "uint64"],
  bool: [Uint8Array, "bool"],
};

const count = (shape) => shape.reduce((a, b) => a * b, 1);

export class Policy {
  constructor(ort, session, about) {
    this.ort = ort;
    this.session = session;
    this.about = about;
    this.outputs = about.actions.map((action) => action.output);
    this.reset();
  }

  // Forget what came before: an episode begins.
  reset() {
    this.state = new Float32Array(this.about.state);
  }

  tensor(port, values, rows) {
    const [kind, type] = ARRAYS[port.dtype];
    const wide = kind === BigInt64Array || kind === BigUint64Array;
    const data = values instanceof kind ? values : kind.from(values, wide ? (v) => BigInt(v) : Number);
    return new this.ort.Tensor(type, data, [rows, ...port.shape]);
  }

  // Outputs for `rows` observations side by side, {name: flat array}; the state is the caller's.
  async run(inputs, rows) {
    const feeds = {};
    for (const port of this.about.inputs) {
      let values = inputs[port.name];
      if (values === undefined && port.name === "action_mask") {
        values = new Uint8Array(rows * count(port.shape)).fill(1);
      }
      feeds[port.name] = this.tensor(port, values, rows);
    }
    const found = await this.session.run(feeds);
    return Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, tensor.data]));
  }

  // What the world is told for one observation, {key: array of numbers}; memory is carried on.
  async act(inputs) {
    const given = this.about.state ? { ...inputs, state: this.state } : inputs;
    const found = await this.run(given, 1);
    if (this.about.state) this.state = found.next_state;
    return this.toWorld(found);
  }

  toWorld(outputs) {
    const told = {};
    for (const action of this.about.actions) {
      const values = Array.from(outputs[action.output], Number);
      told[action.key] = action.kind === "box" ? values.map((v, i) => bounded(action, v, i)) : values;
    }
    return told;
  }

  // Largest difference from the recorded actions, as a share of each action's range.
  async goldenError() {
    const { rows, inputs, world } = this.about.golden;
    const told = this.toWorld(await this.run(inputs, rows));
    let worst = 0;
    for (const action of this.about.actions) {
      const wanted = world[action.key];
      const seen = wanted.reduce((a, b) => Math.max(a, Math.abs(b)), 1);
      const columns = count(action.shape);
      told[action.key].forEach((value, i) => {
        let difference = value === wanted[i] ? 0 : 1;
        if (action.kind === "box") {
          const span = wide(action.high[i % columns], 1) - wide(action.low[i % columns], -1);
          difference = Math.abs(value - wanted[i]) / (Number.isFinite(span) && span > 0 ? span : seen);
        }
        worst = Math.max(worst, Number.isNaN(difference) ? Infinity : difference);
      });
    }
    return worst;
  }
}

const wide = (bound, sign) => (bound === null ? sign * Infinity : bound);

function bounded(action, value, i) {
  const k = i % action.scale.length;
  const whole = action.offset[k] + action.scale[k] * value;
  return Math.fround(Math.min(wide(action.high[k], 1), Math.max(wide(action.low[k], -1), whole)));
}
