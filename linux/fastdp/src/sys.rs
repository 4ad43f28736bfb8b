//! System calls that take pointers: `bpf`, the TAP's `ioctl`s, shared memory of a ring buffer, socket options.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use weave_switch::offload::VIRTIO_HEADER;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_REPLACE: u32 = 1 << 2;
/// Longest name of a map or program, with its terminating zero.
const NAME_LEN: usize = 16;

/// The beginning of `union bpf_attr`; the kernel takes the rest as zero.
struct Attributes([u8; 128]);

impl Attributes {
    fn new() -> Attributes {
        Attributes([0; 128])
    }

    fn u32(mut self, at: usize, value: u32) -> Attributes {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, at: usize, value: u64) -> Attributes {
        self.0[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Attributes {
        self.u32(at, fd.as_raw_fd() as u32)
    }

    fn name(mut self, at: usize, name: &str) -> Attributes {
        let len = name.len().min(NAME_LEN - 1);
        self.0[at..at + len].copy_from_slice(&name.as_bytes()[..len]);
        self
    }

    fn get_u32(&self, at: usize) -> u32 {
        u32_at(&self.0, at)
    }

    /// # Safety
    /// Every pointer among the attributes has to be valid for what the command reads or writes there.
    unsafe fn call(&mut self, command: libc::c_long) -> io::Result<libc::c_long> {
        // SAFETY: the attributes are valid for reading and writing, and longer than any command of this module needs; the caller
        // vouches for the pointers among them.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// # Safety
    /// As [`call`](Attributes::call); the command has to return a new descriptor.
    unsafe fn call_for_fd(&mut self, command: libc::c_long) -> io::Result<OwnedFd> {
        // SAFETY: by contract.
        let fd = unsafe { self.call(command)? };
        // SAFETY: the command succeeded, so this is a new descriptor without another owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// Number of each kind of map that is used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapKind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    ArrayOfMaps = 12,
    RingBuffer = 27,
}

/// What a map has to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapSpec {
    pub(crate) name: &'static str,
    pub(crate) kind: MapKind,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
}

/// A map in the kernel. Keys and values have the sizes of its specification: the functions check it.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
    kind: MapKind,
    /// How many values an entry has, one for each processor that this machine may have; otherwise 1.
    processors: usize,
}

/// What Linux supports.
const MAX_PROCESSORS: usize = 8192;

impl Map {
    /// Creates a map. The maps in an array of maps have to be like `inner`.
    pub(crate) fn create(spec: &MapSpec, inner: Option<&Map>) -> io::Result<Map> {
        let mut attributes = Attributes::new()
            .u32(0, spec.kind as u32)
            .u32(4, spec.key_size)
            .u32(8, spec.value_size)
            .u32(12, spec.max_entries)
            .name(28, spec.name);
        if let Some(inner) = inner {
            attributes = attributes.fd(20, inner.fd.as_fd());
        }
        // SAFETY: the attributes contain no pointer, and the command returns a new descriptor.
        let fd = unsafe { attributes.call_for_fd(BPF_MAP_CREATE)? };
        Map::of(fd, spec)
    }

    fn of(fd: OwnedFd, spec: &MapSpec) -> io::Result<Map> {
        let (key_size, value_size) = (spec.key_size as usize, spec.value_size as usize);
        let mut map = Map { fd, key_size, value_size, kind: spec.kind, processors: 1 };
        if map.kind == MapKind::PerCpuArray {
            // The kernel writes a value for each processor that there may be. Nothing says their number reliably.
            map.processors = MAX_PROCESSORS;
            let mut values = vec![u8::MAX; map.stored_size()];
            map.lookup_into(&[0; 4], &mut values)?;
            let unchanged = |value: &&[u8]| value.iter().all(|b| *b == u8::MAX);
            let size = value_size.next_multiple_of(8);
            map.processors -= values.chunks_exact(size).rev().take_while(unchanged).count();
        }
        Ok(map)
    }

    /// The map with this number, and its name, kind, sizes.
    pub(crate) fn by_id(id: u32) -> io::Result<(OwnedFd, MapInfo)> {
        // SAFETY: the attributes contain no pointer, and the command returns a new descriptor.
        let fd = unsafe { Attributes::new().u32(0, id).call_for_fd(BPF_MAP_GET_FD_BY_ID)? };
        let info = MapInfo(info(fd.as_fd())?);
        Ok((fd, info))
    }

    /// Takes a map that is there already. `None` if it is not like `spec`.
    pub(crate) fn adopt(fd: OwnedFd, info: &MapInfo, spec: &MapSpec) -> Option<Map> {
        if info.is(spec) { Map::of(fd, spec).ok() } else { None }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of a value, as seen from here.
    fn stored_size(&self) -> usize {
        match self.kind {
            MapKind::PerCpuArray => self.value_size.next_multiple_of(8) * self.processors,
            MapKind::ArrayOfMaps => 4,
            _ => self.value_size,
        }
    }

    /// The value of a key; of an array of maps the number of the map. `None` if there is none.
    pub(crate) fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.stored_size()];
        Ok(self.lookup_into(key, &mut value)?.then_some(value))
    }

    /// Reads the value of a key. `false` if there is none.
    fn lookup_into(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!(
            (key.len(), value.len()),
            (self.key_size, self.stored_size()),
            "a key and a value of this map"
        );
        let mut attributes = Attributes::new()
            .fd(0, self.fd.as_fd())
            .u64(8, key.as_ptr() as u64)
            .u64(16, value.as_mut_ptr() as u64);
        // SAFETY: the key has the size of the map's keys, and the value that of what the kernel writes.
        match unsafe { attributes.call(BPF_MAP_LOOKUP_ELEM) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes an entry.
    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.key_size, self.value_size), "an entry of this map");
        assert_ne!(self.kind, MapKind::PerCpuArray, "has a value for each processor");
        let mut attributes = Attributes::new()
            .fd(0, self.fd.as_fd())
            .u64(8, key.as_ptr() as u64)
            .u64(16, value.as_ptr() as u64);
        // SAFETY: key and value have the sizes of the map's, and are only read.
        unsafe { attributes.call(BPF_MAP_UPDATE_ELEM) }.map(drop)
    }

    /// Writes a map into an array of maps, and waits until no program uses the one that was there.
    pub(crate) fn update_map(&self, key: &[u8], map: &Map) -> io::Result<()> {
        assert_eq!(self.kind, MapKind::ArrayOfMaps, "the caller has an array of maps");
        self.update(key, &map.fd.as_raw_fd().to_ne_bytes())
    }

    /// Removes an entry. `false` if there is none.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        assert_eq!(key.len(), self.key_size, "the caller passes a key of this map");
        let mut attributes = Attributes::new().fd(0, self.fd.as_fd()).u64(8, key.as_ptr() as u64);
        // SAFETY: the key has the size of the map's keys, and is only read.
        match unsafe { attributes.call(BPF_MAP_DELETE_ELEM) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All entries of a hash, one after the other: keys and values.
    pub(crate) fn entries(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        const BATCH: usize = 4096;
        assert_eq!(self.kind, MapKind::Hash, "the size of the batch's position depends on the kind");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut position = 0u32;
        let mut started = false;
        loop {
            let (key_end, value_end) = (keys.len(), values.len());
            keys.resize(key_end + BATCH * self.key_size, 0);
            values.resize(value_end + BATCH * self.value_size, 0);
            let from = position;
            let mut attributes = Attributes::new()
                .u64(0, if started { (&raw const from) as u64 } else { 0 })
                .u64(8, (&raw mut position) as u64)
                .u64(16, keys[key_end..].as_mut_ptr() as u64)
                .u64(24, values[value_end..].as_mut_ptr() as u64)
                .u32(32, BATCH as u32)
                .fd(36, self.fd.as_fd());
            // SAFETY: there is room for as many keys and values as the attributes say; a position of a hash is an u32.
            let result = unsafe { attributes.call(BPF_MAP_LOOKUP_BATCH) };
            let last = match result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            let count = (attributes.get_u32(32) as usize).min(BATCH);
            keys.truncate(key_end + count * self.key_size);
            values.truncate(value_end + count * self.value_size);
            if last {
                return Ok((keys, values));
            }
            started = true;
        }
    }
}

/// `struct bpf_map_info`.
pub(crate) struct MapInfo([u8; INFO_LEN]);

impl MapInfo {
    pub(crate) fn name(&self) -> &[u8] {
        let name = &self.0[24..24 + NAME_LEN];
        &name[..name.iter().position(|b| *b == 0).unwrap_or(NAME_LEN)]
    }

    fn is(&self, spec: &MapSpec) -> bool {
        let sizes = [spec.kind as u32, spec.key_size, spec.value_size, spec.max_entries, 0];
        self.name() == spec.name.as_bytes() && [0, 8, 12, 16, 20].map(|at| u32_at(&self.0, at)) == sizes
    }
}

const INFO_LEN: usize = 256;

/// `struct bpf_map_info` or `struct bpf_prog_info`, without the lists that the kernel would write elsewhere.
fn info(fd: BorrowedFd<'_>) -> io::Result<[u8; INFO_LEN]> {
    let mut info = [0u8; INFO_LEN];
    let mut attributes = Attributes::new().fd(0, fd).u32(4, INFO_LEN as u32).u64(8, info.as_mut_ptr() as u64);
    // SAFETY: the buffer has the length that the attributes say, and no pointer in it, so that the kernel writes nowhere else.
    unsafe { attributes.call(BPF_OBJ_GET_INFO_BY_FD)? };
    Ok(info)
}

/// A program in the kernel.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

impl Program {
    /// Loads a classifier of traffic control. With the error comes the end of what the verifier says.
    pub(crate) fn load(
        name: &str,
        instructions: &[u8],
        license: &std::ffi::CStr,
    ) -> Result<Program, (io::Error, String)> {
        assert!(instructions.len().is_multiple_of(8), "instructions of 8 bytes");
        let attributes = || {
            Attributes::new()
                .u32(0, BPF_PROG_TYPE_SCHED_CLS)
                .u32(4, (instructions.len() / 8) as u32)
                .u64(8, instructions.as_ptr() as u64)
                .u64(16, license.as_ptr() as u64)
                .name(48, name)
        };
        // SAFETY: instructions and licence have the lengths that the attributes and the terminating zero say, and are only read.
        let error = match unsafe { attributes().call_for_fd(BPF_PROG_LOAD) } {
            Ok(fd) => return Ok(Program(fd)),
            Err(error) => error,
        };
        let mut log = vec![0u8; 1 << 20];
        let mut again = attributes().u32(24, 1).u32(28, log.len() as u32).u64(32, log.as_mut_ptr() as u64);
        // SAFETY: as above, and the log has the length that the attributes say.
        match unsafe { again.call_for_fd(BPF_PROG_LOAD) } {
            Ok(fd) => Ok(Program(fd)),
            Err(_) => {
                let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
                let text = String::from_utf8_lossy(&log[..end]);
                let skipped = text.lines().count().saturating_sub(8);
                Err((error, text.lines().skip(skipped).collect::<Vec<_>>().join(" | ")))
            }
        }
    }

    pub(crate) fn by_id(id: u32) -> io::Result<Program> {
        // SAFETY: the attributes contain no pointer, and the command returns a new descriptor.
        unsafe { Attributes::new().u32(0, id).call_for_fd(BPF_PROG_GET_FD_BY_ID) }.map(Program)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Its number in the kernel.
    pub(crate) fn id(&self) -> io::Result<u32> {
        info(self.0.as_fd()).map(|info| u32_at(&info, 4))
    }

    /// Whether it was loaded with this name.
    pub(crate) fn has_name(&self, name: &[u8]) -> io::Result<bool> {
        let info = info(self.0.as_fd())?;
        let known = &info[64..64 + NAME_LEN];
        Ok(known.split(|b| *b == 0).next() == Some(name))
    }

    /// The numbers of the programs of the kind tcx at the ingress of a device, in the order in which they run.
    pub(crate) fn at_ingress(ifindex: u32) -> io::Result<Vec<u32>> {
        let mut ids = [0u32; 64];
        let mut attributes = Attributes::new()
            .u32(0, ifindex)
            .u32(4, BPF_TCX_INGRESS)
            .u64(16, ids.as_mut_ptr() as u64)
            .u32(24, ids.len() as u32);
        // SAFETY: there is room for as many numbers as the attributes say; there is no other pointer among them.
        unsafe { attributes.call(BPF_PROG_QUERY)? };
        let count = (attributes.get_u32(24) as usize).min(ids.len());
        Ok(ids[..count].to_vec())
    }

    /// Attaches it to the ingress of a device, in place of `old` or behind all others. It stays without this process.
    pub(crate) fn attach(&self, ifindex: u32, old: Option<&Program>) -> io::Result<()> {
        let mut attributes = Attributes::new().u32(0, ifindex).fd(4, self.fd()).u32(8, BPF_TCX_INGRESS);
        if let Some(old) = old {
            attributes = attributes.u32(12, BPF_F_REPLACE).fd(16, old.fd());
        }
        // SAFETY: the attributes contain no pointer.
        unsafe { attributes.call(BPF_PROG_ATTACH) }.map(drop)
    }

    /// Removes it from the ingress of a device.
    pub(crate) fn detach(&self, ifindex: u32) -> io::Result<()> {
        let mut attributes = Attributes::new().u32(0, ifindex).fd(4, self.fd()).u32(8, BPF_TCX_INGRESS);
        // SAFETY: the attributes contain no pointer.
        unsafe { attributes.call(BPF_PROG_DETACH) }.map(drop)
    }

    /// The numbers of the maps that it uses.
    pub(crate) fn map_ids(&self) -> io::Result<Vec<u32>> {
        let mut ids = [0u32; 64];
        let mut info = [0u8; INFO_LEN];
        info[52..56].copy_from_slice(&(ids.len() as u32).to_ne_bytes());
        info[56..64].copy_from_slice(&(ids.as_mut_ptr() as u64).to_ne_bytes());
        let mut attributes =
            Attributes::new().fd(0, self.0.as_fd()).u32(4, INFO_LEN as u32).u64(8, info.as_mut_ptr() as u64);
        // SAFETY: the buffer has the length that the attributes say; the only pointer in it is to `ids`, whose length stands before.
        unsafe { attributes.call(BPF_OBJ_GET_INFO_BY_FD)? };
        let count = (u32_at(&info, 52) as usize).min(ids.len());
        Ok(ids[..count].to_vec())
    }

    /// Runs it on a packet. Returns its result; the packet is changed in place as far as it keeps its length.
    pub(crate) fn test_run(&self, packet: &mut [u8]) -> io::Result<u32> {
        let input = packet.to_vec();
        let mut attributes = Attributes::new()
            .fd(0, self.0.as_fd())
            .u32(8, input.len() as u32)
            .u32(12, packet.len() as u32)
            .u64(16, input.as_ptr() as u64)
            .u64(24, packet.as_mut_ptr() as u64);
        // SAFETY: both buffers have the lengths that the attributes say, and do not overlap.
        unsafe { attributes.call(BPF_PROG_TEST_RUN)? };
        Ok(attributes.get_u32(4))
    }
}

/// Before Linux 5.11 maps count as locked memory, whose usual limit is too small for them.
pub(crate) fn lift_memory_limit() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a valid structure, which is only read.
    match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Memory that is shared with the kernel.
struct Shared {
    start: NonNull<u8>,
    len: usize,
}

impl Shared {
    fn map(fd: BorrowedFd<'_>, len: usize, writable: bool, offset: usize) -> io::Result<Shared> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast::<c_void>() != libc::MAP_FAILED => Ok(Shared { start, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The reading side of a ring buffer.
pub(crate) struct Ring {
    /// Only so that it can be polled.
    map: OwnedFd,
    /// One page, of which the first word is our position.
    consumer: Shared,
    /// A page, of which the first word is the position of the programs, and the data twice in a row.
    producer: Shared,
    page: usize,
    size: usize,
}

// SAFETY: the mappings belong to this value alone, and are accessed through `&mut self`; the kernel's side uses atomics.
unsafe impl Send for Ring {}

// SAFETY: a shared reference gives access to nothing but the descriptor.
unsafe impl Sync for Ring {}

const RECORD_BUSY: u32 = 1 << 31;
const RECORD_DISCARDED: u32 = 1 << 30;
const RECORD_HEADER: usize = 8;

impl Ring {
    /// Maps a ring buffer of `size` bytes.
    pub(crate) fn new(map: &Map, size: usize) -> io::Result<Ring> {
        assert_eq!(map.kind, MapKind::RingBuffer, "the caller has a ring buffer");
        // SAFETY: the call takes no pointer.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let consumer = Shared::map(map.fd(), page, true, 0)?;
        let producer = Shared::map(map.fd(), page + 2 * size, false, page)?;
        Ok(Ring { map: map.fd().try_clone_to_owned()?, consumer, producer, page, size })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    fn position_of(shared: &Shared) -> &AtomicUsize {
        // SAFETY: the mapping starts at a page and is at least one long; the kernel accesses the word atomically, too, and the
        // reference does not outlive the mapping.
        unsafe { &*shared.start.as_ptr().cast::<AtomicUsize>() }
    }

    /// Skips what is there.
    pub(crate) fn skip_all(&mut self) {
        let end = Self::position_of(&self.producer).load(Ordering::Acquire);
        Self::position_of(&self.consumer).store(end, Ordering::SeqCst);
    }

    /// Passes the next record to `read`. `None` if there is none.
    pub(crate) fn next<T>(&mut self, mut read: impl FnMut(&[u8]) -> T) -> Option<T> {
        loop {
            let position = Self::position_of(&self.consumer).load(Ordering::Relaxed);
            // Ordered after the store of the position in the last turn: the program wakes us only if it saw that.
            let end = Self::position_of(&self.producer).load(Ordering::SeqCst);
            if position == end {
                return None;
            }
            let at = self.page + (position & (self.size - 1));
            // SAFETY: `at` is within the data, and a record starts there, with an aligned header that the kernel writes atomically.
            let header = unsafe { &*self.producer.start.as_ptr().add(at).cast::<AtomicU32>() };
            let header = header.load(Ordering::Acquire);
            if header & RECORD_BUSY != 0 {
                return None;
            }
            let len = (header & !(RECORD_BUSY | RECORD_DISCARDED)) as usize;
            if RECORD_HEADER + len > self.size {
                // The kernel never writes this.
                self.skip_all();
                return None;
            }
            // SAFETY: the data are mapped twice in a row, so that a record of up to `size` bytes from any position is contiguous; its
            // header says that it is complete, and the kernel does not write to it until our position has passed it.
            let record = unsafe {
                std::slice::from_raw_parts(self.producer.start.as_ptr().add(at + RECORD_HEADER), len)
            };
            let result = (header & RECORD_DISCARDED == 0).then(|| read(record));
            let next = position + (RECORD_HEADER + len).next_multiple_of(8);
            Self::position_of(&self.consumer).store(next, Ordering::SeqCst);
            if result.is_some() {
                return result;
            }
        }
    }
}

/// Attaches a queue of the TAP device `name`, which is created if there is none. The flag `multi_queue` cannot change; only such a
/// device passes frames with pending work.
pub(crate) fn open_tap(name: &str, multi_queue: bool) -> io::Result<OwnedFd> {
    let fd = OwnedFd::from(File::options().read(true).write(true).open("/dev/net/tun")?);
    attach_queue(&fd, name, multi_queue)?;
    set_nonblocking(&fd)?;
    Ok(fd)
}

/// Makes a descriptor a queue of a TAP device, which is created if there is none. It may be one whose device has been removed.
///
/// # Errors
/// EEXIST if it is a queue of a device already.
pub(crate) fn attach_queue(fd: &OwnedFd, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut request = [0u8; size_of::<libc::ifreq>()];
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request[..name.len()].copy_from_slice(name.as_bytes());
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues) as u16;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the buffer has the size of the structure that the request reads and writes.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) })?;
    if !multi_queue {
        return tap_number(fd, libc::TUNSETOFFLOAD, 0);
    }
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // UDP segmentation: from Linux 6.2.
    tap_number(fd, libc::TUNSETOFFLOAD, offloads | TUN_F_USO4 | TUN_F_USO6)
        .or_else(|_| tap_number(fd, libc::TUNSETOFFLOAD, offloads))
}

/// A TAP device stays without an open queue.
pub(crate) fn keep_tap(queue: &OwnedFd) -> io::Result<()> {
    tap_number(queue, libc::TUNSETPERSIST, 1)
}

const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

fn tap_number(fd: &OwnedFd, request: libc::Ioctl, number: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument of these requests is a number, not a pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, libc::c_ulong::from(number)) })
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) })
}

/// Sets an integer option of a socket.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer refers to `value`, which is valid during the call, and the length is its size.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            size_of_val(&value) as libc::socklen_t,
        )
    })
}

/// Opens a socket for [`send_frame`]. Closing one takes the kernel some time, because it waits for all receivers of packets.
pub(crate) fn open_frame_socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0)
    };
    check(fd)?;
    // SAFETY: the descriptor was just created and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    Ok(socket)
}

/// Sends a frame through a device as a container does: `header` says what is left to the kernel or the network card.
pub(crate) fn send_frame(
    socket: &OwnedFd,
    ifindex: u32,
    header: [u8; VIRTIO_HEADER],
    frame: &[u8],
) -> io::Result<()> {
    let message = [&header[..], frame].concat();
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: both pointers refer to values that are valid during the call, with their sizes.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            message.as_ptr().cast::<c_void>(),
            message.len(),
            0,
            (&raw const address).cast::<libc::sockaddr>(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Time of the clock that programs read, in nanoseconds.
pub(crate) fn monotonic_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a valid structure, which is only written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
