// Adam (Kingma and Ba, 2015, arXiv:1412.6980) on the box [0, 1], upwards: after each step, latents are clipped.

const [SLOW, SLOWER] = [0.9, 0.999];  // decay of the running means of the gradient and of its square

export class Adam {
  constructor(latent, rate = 0.04) {
    Object.assign(this, { latent, rate, steps: 0 });
    this.mean = new Float64Array(latent.length);
    this.square = new Float64Array(latent.length);
  }

  step(gradient) {
    this.steps += 1;
    const [bias, slowerBias] = [1 - SLOW ** this.steps, 1 - SLOWER ** this.steps];
    this.latent = this.latent.map((value, i) => {
      this.mean[i] = SLOW * this.mean[i] + (1 - SLOW) * gradient[i];
      this.square[i] = SLOWER * this.square[i] + (1 - SLOWER) * gradient[i] ** 2;
      const change = this.mean[i] / bias / (Math.sqrt(this.square[i] / slowerBias) + 1e-12);
      return Math.min(1, Math.max(0, value + this.rate * change));
    });
  }
}
