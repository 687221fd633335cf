// Muon: parameters that move as matrices. src/optim/muon.rs has the whole update; its products are those of linear.cu.
// Instances: T = float, half, bf16
#include "update.cuh"

struct MuonDims {
  int n;       // elements of the parameter
  int group;   // of the step's rates
  float root;  // the norm that the parameter is brought to before the update, or 0: it is left as it is
};

struct UnitDims {
  int n;          // elements
  float nothing;  // added to the norm
};

struct PolynomialDims {
  int n, columns;  // elements, and a row's
  float a, b, c;   // factors of 1, x and y
};

// v = momentum * v + g'; u = g' + momentum * v, with g' the gradient as it is used.
// Threads: one an element, neighbours side by side.
// Traffic: g and v read, v and u written.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: in float.
// Limits: n < 2^31.
// Registers: at most 40.
__global__ void __launch_bounds__(256)
    muon_momentum(const float* __restrict__ g, float* __restrict__ v, float* __restrict__ u,
                  OPTIONAL const float* __restrict__ norm, OPTIONAL const Scaling* __restrict__ scaling,
                  const Step* __restrict__ s, MuonDims d) {
  if (is_skipped(scaling)) return;
  const float clip = s->clip, unscale = gradient_scale(s, norm, scaling);
  const float momentum = (float)s->rates[d.group].momentum;
  FOR_EACH(i, d.n) {
    const float grad = used(g[i], unscale, clip), velocity = momentum * v[i] + grad;
    v[i] = velocity;
    u[i] = grad + momentum * velocity;
  }
}

// x = u / (norm + nothing).
// Threads: one for four elements, neighbours side by side.
// Traffic: u read, x written.
template <class T>
__global__ void __launch_bounds__(256)
    muon_unit(const float* __restrict__ u, T* __restrict__ x, const float* __restrict__ norm, UnitDims d) {
  const float scale = 1.0f / (norm[0] + d.nothing);
  map(x, d.n, [scale](float u) { return scale * u; }, u);
}

// y = a * I + b * x + c * y, square matrices.
// Threads: one an element, neighbours side by side.
// Traffic: x and y read, y written.
template <class T>
__global__ void __launch_bounds__(256) muon_polynomial(const T* __restrict__ x, T* __restrict__ y, PolynomialDims d) {
  FOR_EACH(i, d.n) {
    const float one = i % (d.columns + 1) == 0 ? d.a : 0.0f;  // from one of the diagonal to the next
    y[i] = from_float<T>(one + d.b * to_float(x[i]) + d.c * to_float(y[i]));
  }
}

// p = p * root / norm (where there is a root, and a norm above 0), then p = p * (1 - lr * decay) - lr * x.
// Threads: one an element, neighbours side by side.
// Traffic: p and x read, p written; `copy`, what products take, written where there is one.
template <class T>
__global__ void __launch_bounds__(256)
    muon_step(const T* __restrict__ x, float* __restrict__ p, OPTIONAL T* __restrict__ copy,
              OPTIONAL const float* __restrict__ norm, OPTIONAL const Scaling* __restrict__ scaling,
              const Step* __restrict__ s, MuonDims d) {
  if (is_skipped(scaling)) return;
  const Rate& r = s->rates[d.group];
  const float lr = (float)r.lr, length = norm && norm[0] > 0.0f ? d.root / norm[0] : 1.0f;
  const float keep = length * (1.0f - lr * (float)r.decay);
  FOR_EACH(i, d.n) {
    const float value = p[i] * keep - lr * to_float(x[i]);
    p[i] = value;
    if (copy) copy[i] = from_float<T>(value);
  }
}
