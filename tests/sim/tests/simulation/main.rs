//! One binary, so that tests with a time limit (`SIM_SECONDS`) run side by side.

mod addresses;
mod broken_segmentation;
mod driver_faults;
mod failover;
mod large_mesh;
mod mesh;
mod names;
mod restarts;
mod scripted;
mod slow_machines;
mod transcripts;
