//! xdit-models
