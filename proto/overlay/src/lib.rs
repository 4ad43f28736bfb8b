//! Carrying frames to a neighbour: sleeve, overlay selection, the data path shared by kernel driver and simulator.
#![forbid(unsafe_code)]
