// Proves the policy against what it did in the lab, times it, and lets it act.

import { CartPole, LIMIT } from "./cartpole.js";
import { Policy } from "./policy.js";

const RUNTIME = "./ort.wasm.bundle.min.mjs";
const COLOURS = ["#3366aa", "#c27a2c", "#1b6e3c", "#8844aa", "#b00020", "#227788"];
const START = [0.01, -0.02, 0.03, -0.04];
const TIMED = 300;

const show = (id, text, kind = "") => {
  const element = document.getElementById(id);
  element.textContent = text;
  element.className = kind;
};

async function open() {
  const about = await (await fetch("policy.json")).json();
  show("name", about.name || "A policy");
  show("about", about.licence ? `licence: ${about.licence}` : "");
  let ort;
  try {
    ort = await import(RUNTIME);
  } catch (error) {
    throw new Error(
      "onnxruntime-web is not beside this page: rlgym web puts it there, or take " +
        "ort.wasm.bundle.min.mjs and ort-wasm-simd-threaded.wasm from the npm package onnxruntime-web",
    );
  }
  ort.env.wasm.numThreads = 1; // several need headers that a plain server does not send
  const session = await ort.InferenceSession.create("policy.onnx", { executionProviders: ["wasm"] });
  return new Policy(ort, session, about);
}

async function prove(policy) {
  const error = await policy.goldenError();
  const { rows } = policy.about.golden;
  const passed = error <= policy.about.tolerance;
  const text = `${rows} recorded observations, largest error ${error.toExponential(1)} of the range`;
  show("golden", passed ? text : `NO: ${text}`, passed ? "good" : "bad");
  document.body.dataset.error = error;
}

function row(about, k) {
  const found = {};
  for (const port of about.inputs) {
    const size = port.shape.reduce((a, b) => a * b, 1);
    found[port.name] = about.golden.inputs[port.name].slice(k * size, (k + 1) * size);
  }
  return found;
}

async function time(policy) {
  const rows = [...Array(policy.about.golden.rows).keys()].map((k) => row(policy.about, k));
  const times = [];
  for (let k = 0; k < TIMED; k++) {
    const began = performance.now();
    await policy.run(rows[k % rows.length], 1);
    if (k >= 20) times.push(performance.now() - began);
  }
  times.sort((a, b) => a - b);
  const at = (share) => times[Math.floor(share * (times.length - 1))];
  show("latency", `median ${at(0.5).toFixed(2)} ms, 99 % within ${at(0.99).toFixed(2)} ms (one thread)`);
  document.body.dataset.median = at(0.5);
}

// An episode from a fixed start, as fast as it goes: what it does here can be compared elsewhere.
async function firstEpisode(policy) {
  const world = new CartPole(START);
  const trace = [world.state];
  policy.reset();
  while (!world.over) {
    const told = await policy.act({ obs: world.observation });
    world.step(told[""][0]);
    trace.push(world.state);
  }
  document.body.dataset.steps = world.steps;
  document.body.dataset.trace = JSON.stringify(trace.slice(0, 101));
  return world.steps;
}

async function balance(policy, canvas) {
  show("world-label", "cart and pole");
  let steps = await firstEpisode(policy);
  const world = new CartPole();
  const turn = async () => {
    if (world.over) {
      steps = world.steps;
      world.reset();
      policy.reset();
    }
    const told = await policy.act({ obs: world.observation });
    world.step(told[""][0]);
    world.draw(canvas);
    show("world", `step ${world.steps} of ${LIMIT.steps}; the last episode had ${steps}`);
    setTimeout(() => requestAnimationFrame(turn), 20);
  };
  policy.reset();
  await turn();
}

// The recorded trace once more: lines are what the policy says here, dots what it said in the lab.
async function replay(policy, canvas) {
  const { about } = policy;
  const { rows, world, inputs } = about.golden;
  const [action] = about.actions;
  const told = policy.toWorld(await policy.run(inputs, rows))[action.key];
  const width = action.shape.reduce((a, b) => a * b, 1);
  const [least, most] = [...told, ...world[action.key]].reduce(
    ([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const c = canvas.getContext("2d");
  const x = (k) => 10 + ((canvas.width - 20) * k) / Math.max(rows - 1, 1);
  const y = (v) => canvas.height - 10 - ((canvas.height - 20) * (v - least)) / (most - least || 1);
  let shown = 0;
  const turn = () => {
    shown = shown >= rows ? 1 : shown + 1;
    c.clearRect(0, 0, canvas.width, canvas.height);
    for (let d = 0; d < Math.min(width, COLOURS.length); d++) {
      c.strokeStyle = c.fillStyle = COLOURS[d];
      c.beginPath();
      for (let k = 0; k < shown; k++) {
        c[k ? "lineTo" : "moveTo"](x(k), y(told[k * width + d]));
        c.fillRect(x(k) - 1.5, y(world[action.key][k * width + d]) - 1.5, 3, 3);
      }
      c.stroke();
    }
    show("world", `${width} value${width > 1 ? "s" : ""}, from ${least.toFixed(2)} to ${most.toFixed(2)}`);
    setTimeout(() => requestAnimationFrame(turn), 50);
  };
  show("legend", "Lines: what the policy says here. Dots: what it said in the lab.");
  turn();
}

try {
  const policy = await open();
  await prove(policy);
  await time(policy);
  const canvas = document.getElementById("canvas");
  await (policy.about.world === "CartPole-v1" ? balance : replay)(policy, canvas);
  document.body.dataset.state = "done";
} catch (error) {
  show("golden", String(error.message ?? error), "bad");
  document.body.dataset.state = "failed";
}
