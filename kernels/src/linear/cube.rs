//! Linear layers on CubeCL's backends.

use burn_cubecl::CubeBackend;

use super::LinearOps;

impl LinearOps for CubeBackend {}
