//! stub
/// x
pub fn clean_caption(t: &str) -> String { t.to_lowercase().trim().into() }
/// x
pub fn plain_caption(t: &str) -> String { t.to_lowercase().trim().into() }
