//! Joins the core to the kernel.
