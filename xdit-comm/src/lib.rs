//! xdit-comm
