//! The command `xdit`.
fn main() {}
