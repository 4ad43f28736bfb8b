//! The maps of the programs: made new, or taken over from an earlier process.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use weave_host::fault_injection::io_fail_point;

use crate::error::Error;
use crate::layout::{
    COUNT_SIZE, Counter, EVENTS_SIZE, GLOBALS_SIZE, Globals, IDS, LIMITS_SIZE, MAC_ENTRY_SIZE, PORT_SIZE,
    REMOTE_SIZE, TABLES_SIZE, TRAFFIC_SIZE,
};
use crate::sys::{self, Map, MapInfo, MapKind, MapSpec, Program};

/// Their names in `bpf/fastdp.bpf.c`.
#[cfg(test)]
pub(crate) const NAMES: [&str; 9] =
    ["globals", "tables", "macs", "counters", "limits", "traffic", "remotes", "ports", "events"];

/// The maps that all programs share.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) globals: Map,
    /// An array of one [`tables_map`].
    pub(crate) tables: Map,
    pub(crate) macs: Map,
    pub(crate) counters: Map,
    pub(crate) events: Map,
    /// These belong to one process.
    pub(crate) own: OwnMaps,
}

/// The maps that are not adopted: nothing in them has to outlive a process.
#[derive(Debug)]
pub(crate) struct OwnMaps {
    limits: Map,
    pub(crate) traffic: Map,
    pub(crate) remotes: Map,
    pub(crate) ports: Arc<Map>,
}

/// The key of the only entry of an array.
pub(crate) const ONLY: [u8; 4] = [0; 4];

const fn array(name: &'static str, value_size: usize, max_entries: usize) -> MapSpec {
    let (value_size, max_entries) = (value_size as u32, max_entries as u32);
    MapSpec { name, kind: MapKind::Array, key_size: 4, value_size, max_entries }
}

const GLOBALS: MapSpec = array("weave_globals", GLOBALS_SIZE, 1);
const ROUTES: MapSpec = array("weave_routes", TABLES_SIZE, 1);
const TABLES: MapSpec = MapSpec { kind: MapKind::ArrayOfMaps, ..array("weave_tables", 4, 1) };
const COUNTERS: MapSpec =
    MapSpec { kind: MapKind::PerCpuArray, ..array("weave_counters", COUNT_SIZE, Counter::ALL.len()) };
const LIMITS: MapSpec = array("weave_limits", LIMITS_SIZE, IDS);
const TRAFFIC: MapSpec = MapSpec { kind: MapKind::PerCpuArray, ..array("weave_traffic", TRAFFIC_SIZE, IDS) };
const REMOTES: MapSpec = hash("weave_remotes", REMOTE_SIZE, 4, IDS as u32);
/// More MACs than one host is likely to have; others have no shortcut.
const PORTS: MapSpec = hash("weave_ports", 8, PORT_SIZE, 16_384);
const EVENTS: MapSpec = MapSpec {
    name: "weave_events",
    kind: MapKind::RingBuffer,
    key_size: 0,
    value_size: 0,
    max_entries: EVENTS_SIZE as u32,
};

const fn hash(name: &'static str, key_size: usize, value_size: usize, max_entries: u32) -> MapSpec {
    let (key_size, value_size) = (key_size as u32, value_size as u32);
    MapSpec { name, kind: MapKind::Hash, key_size, value_size, max_entries }
}

const fn macs(max_entries: u32) -> MapSpec {
    hash("weave_macs", 8, MAC_ENTRY_SIZE, max_entries)
}

/// A map for one table of routes.
pub(crate) fn tables_map() -> Result<Map, Error> {
    Error::at("creating a map for routes", || Map::create(&ROUTES, None))
}

/// Takes a map that [`tables_map`] of an earlier process has made.
pub(crate) fn adopt_tables(fd: OwnedFd, info: &MapInfo) -> Option<Map> {
    Map::adopt(fd, info, &ROUTES)
}

impl Maps {
    /// Makes new maps, without routes.
    pub(crate) fn create(max_macs: u32) -> Result<Maps, Error> {
        let globals = match create(&GLOBALS, None) {
            // Before Linux 5.11 also a sign of too little memory that may be locked.
            Err(Error::Permission { .. }) if sys::lift_memory_limit().is_ok() => create(&GLOBALS, None)?,
            other => {
                other.map_err(|e| e.lacking(&[libc::ENOSYS], "the system call bpf (CONFIG_BPF_SYSCALL)"))?
            }
        };
        let events = create(&EVENTS, None)
            .map_err(|e| e.lacking(&[libc::EINVAL], "ring buffers of eBPF (Linux 5.8)"))?;
        Ok(Maps {
            globals,
            tables: create(&TABLES, Some(&tables_map()?))?,
            macs: create(&macs(max_macs), None)?,
            counters: create(&COUNTERS, None)?,
            events,
            own: OwnMaps::create()?,
        })
    }

    /// The maps of a program that is attached already. `None` if they cannot be read, or are not what this version makes.
    pub(crate) fn adopt(program: u32, max_macs: u32) -> Option<Maps> {
        let program = Program::by_id(program).ok()?;
        let mut found = Vec::new();
        for id in program.map_ids().ok()? {
            found.push(Map::by_id(id).ok()?);
        }
        let mut take = |spec: &MapSpec| {
            let at = found.iter().position(|(_, info)| info.name() == spec.name.as_bytes())?;
            let (fd, info) = found.swap_remove(at);
            Map::adopt(fd, &info, spec)
        };
        let maps = Maps {
            globals: take(&GLOBALS)?,
            tables: take(&TABLES)?,
            macs: take(&macs(max_macs))?,
            counters: take(&COUNTERS)?,
            events: take(&EVENTS)?,
            own: OwnMaps::create().ok()?,
        };
        let globals = maps.globals.lookup(&ONLY).ok()??;
        Globals::decode(&globals)?.is_current().then_some(maps)
    }

    /// Loads a program that uses them.
    pub(crate) fn load(&self, name: &str) -> Result<Program, Error> {
        let instructions = crate::object::program(name, |map| {
            let map = match map {
                "globals" => &self.globals,
                "tables" => &self.tables,
                "macs" => &self.macs,
                "counters" => &self.counters,
                "limits" => &self.own.limits,
                "traffic" => &self.own.traffic,
                "remotes" => &self.own.remotes,
                "ports" => &self.own.ports,
                "events" => &self.events,
                _ => return None,
            };
            Some(map.fd().as_raw_fd())
        })?;
        let step = format!("loading the eBPF program {name}");
        io_fail_point(&step).map_err(|error| Error::new(&*step, error))?;
        let name = format!("weave_{name}");
        Program::load(&name, &instructions, crate::object::LICENSE).map_err(|(error, verifier)| {
            if verifier.is_empty() {
                return Error::new(step, error).lacking(&[libc::EINVAL], "classifiers in eBPF");
            }
            // Tests load the programs: a kernel that refuses them lacks something that they use.
            let feature = format!("something that the program needs ({error}; {verifier})");
            Error::Unsupported { step, feature }
        })
    }
}

impl OwnMaps {
    fn create() -> Result<OwnMaps, Error> {
        Ok(OwnMaps {
            limits: create(&LIMITS, None)?,
            traffic: create(&TRAFFIC, None)?,
            remotes: create(&REMOTES, None)?,
            ports: Arc::new(create(&PORTS, None)?),
        })
    }
}

fn create(spec: &MapSpec, inner: Option<&Map>) -> Result<Map, Error> {
    Error::at(&format!("creating the eBPF map {}", spec.name), || Map::create(spec, inner))
}
