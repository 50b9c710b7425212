//! The gated residual connection on CubeCL's backends.

use burn_cubecl::CubeBackend;

use super::ResidualOps;

impl ResidualOps for CubeBackend {}
