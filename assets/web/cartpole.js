// CartPole-v1 as Gymnasium has it (Barto, Sutton and Anderson 1983; Euler's method, 0.02 s a step).

export const LIMIT = { x: 2.4, angle: (12 * 2 * Math.PI) / 360, steps: 500 };
const GRAVITY = 9.8, POLE = 0.1, TOTAL = 1.1, HALF = 0.5, FORCE = 10, DT = 0.02;

export class CartPole {
  constructor(state) {
    this.reset(state);
  }

  reset(state) {
    this.state = state ?? [0, 0, 0, 0].map(() => 0.1 * Math.random() - 0.05);
    this.steps = 0;
  }

  get observation() {
    return Float32Array.from(this.state);
  }

  get over() {
    const [x, , angle] = this.state;
    return Math.abs(x) > LIMIT.x || Math.abs(angle) > LIMIT.angle || this.steps >= LIMIT.steps;
  }

  step(action) {
    const [x, v, angle, rate] = this.state;
    const cos = Math.cos(angle), sin = Math.sin(angle);
    const push = ((action === 1 ? FORCE : -FORCE) + POLE * HALF * rate * rate * sin) / TOTAL;
    const turn = (GRAVITY * sin - cos * push) / (HALF * (4 / 3 - (POLE * cos * cos) / TOTAL));
    const pull = push - (POLE * HALF * turn * cos) / TOTAL;
    this.state = [x + DT * v, v + DT * pull, angle + DT * rate, rate + DT * turn];
    this.steps += 1;
  }

  draw(canvas) {
    const c = canvas.getContext("2d");
    const { width, height } = canvas;
    const [x, , angle] = this.state;
    const unit = width / (2 * LIMIT.x + 0.6), ground = 0.78 * height, at = width / 2 + x * unit;
    c.clearRect(0, 0, width, height);
    c.strokeStyle = "#999";
    c.beginPath();
    c.moveTo(0, ground);
    c.lineTo(width, ground);
    c.stroke();
    c.fillStyle = "#333";
    c.fillRect(at - 30, ground - 18, 60, 36);
    c.strokeStyle = "#c27a2c";
    c.lineWidth = 9;
    c.lineCap = "round";
    c.beginPath();
    c.moveTo(at, ground - 10);
    c.lineTo(at + unit * Math.sin(angle), ground - 10 - unit * Math.cos(angle));
    c.stroke();
    c.lineWidth = 1;
  }
}
