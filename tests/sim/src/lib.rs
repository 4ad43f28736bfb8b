//! Many nodes, a virtual clock, lossy links, crashes; invariants after each step.
#![forbid(unsafe_code)]
