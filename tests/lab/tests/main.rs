//! Tests of real binaries on hosts made of network namespaces. `claims!` in a file lists the rows of docs/claims.md that its tests show.
//! The tests spend most of their time waiting, so that several can run at a time on each core (`--test-threads`).
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]
#![expect(unreachable_pub, reason = "helpers of a test program")]

mod common;

mod attach;
mod bootstrap;
mod chain_discovery;
mod changed_addresses;
mod checksums;
mod cli_surface;
mod cluster_growth;
mod cni;
mod cni_engines;
mod connect_targets;
mod container_move;
mod docker_clients;
mod docker_containers;
mod docker_names;
mod docker_networks;
mod docker_oci_runtime;
mod docker_plugin;
mod docker_proxy;
mod docker_refuses;
mod docker_restarts;
mod docker_run;
mod docker_service;
mod dynamic_peers;
mod expose;
mod exposed_services;
mod fault_injection;
mod firewall_rules;
mod flapping;
mod host_changes;
mod hostile_input;
mod invalid_arguments;
mod lab_environment;
mod line_topology;
mod link_failure;
mod mesh;
mod mesh_port;
mod missing_features;
mod mixed_overlays;
mod name_server;
mod names;
mod nat;
mod netavark;
mod no_masq_local;
mod partition;
mod password;
mod password_attacks;
mod path_mtu;
mod quorum_size;
mod range_exhaustion;
mod range_takeover;
mod restart;
mod restrictive_firewall;
mod service_lifecycle;
mod single_host_addresses;
mod subnet_isolation;
mod systemd_boot;
mod systemd_unit;
mod trusted_subnets;
mod udp_path;
mod upgrade;
mod warp;
