//! The emulated CUDA device.
