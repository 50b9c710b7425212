//! Activations on CubeCL's backends.

use burn_cubecl::CubeBackend;

use super::ActivationOps;

impl ActivationOps for CubeBackend {}
