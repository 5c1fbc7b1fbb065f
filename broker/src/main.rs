//! Placeholder until the first code lands.
fn main() {}
