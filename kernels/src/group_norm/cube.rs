//! Group norm on CubeCL's backends.

use burn_cubecl::CubeBackend;

use super::GroupNormOps;

impl GroupNormOps for CubeBackend {}
