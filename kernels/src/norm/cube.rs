//! Layer and RMS norms on CubeCL's backends.

use burn_cubecl::CubeBackend;

use super::NormOps;

impl NormOps for CubeBackend {}
