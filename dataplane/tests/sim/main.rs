//! Cores joined by a simulated network in virtual time.
