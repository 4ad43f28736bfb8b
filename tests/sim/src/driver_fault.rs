//! Faults of the driver, planted to see that random runs find them.

/// A fault of the driver of every host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverFault {
    /// Nothing that the mesh persists reaches the disk.
    LosePersist,
    /// What the mesh persists reaches the disk with its next write, after messages that depend on it.
    LatePersist,
    /// One in four changes of the tables is not published.
    LoseTables,
    /// Tables are published at the next change, when they are out of date.
    LateTables,
    /// One in fifty stream writes is lost.
    LoseWrites,
    /// One in fifty stream writes is repeated.
    RepeatWrites,
    /// The number of written bytes is not reported.
    LoseWrittenReports,
    /// Overlay control frames do not reach the node.
    LoseControlFrames,
    /// Learned MACs do not reach the node.
    LoseMacs,
    /// One in ten frames is injected twice.
    InjectTwice,
    /// One in ten frames comes back to its sender.
    Echo,
    /// One in three timers never fires.
    LoseTimers,
    /// The node is woken every 100 ms.
    SpuriousWakeups,
    /// Nothing that the allocator persists reaches the disk.
    LoseRecords,
    /// What the allocator persists reaches the disk with its next write, after messages that depend on it.
    LateRecords,
}

impl DriverFault {
    pub const ALLOCATION: [DriverFault; 2] = [DriverFault::LoseRecords, DriverFault::LateRecords];
    pub const MESH: [DriverFault; 13] = [
        DriverFault::LosePersist,
        DriverFault::LatePersist,
        DriverFault::LoseTables,
        DriverFault::LateTables,
        DriverFault::LoseWrites,
        DriverFault::RepeatWrites,
        DriverFault::LoseWrittenReports,
        DriverFault::LoseControlFrames,
        DriverFault::LoseMacs,
        DriverFault::InjectTwice,
        DriverFault::Echo,
        DriverFault::LoseTimers,
        DriverFault::SpuriousWakeups,
    ];
}
