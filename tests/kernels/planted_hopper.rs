//! Kernels for sm_90a with planted bugs (tests/kernels/planted_hopper.cu), as in planted.rs.
