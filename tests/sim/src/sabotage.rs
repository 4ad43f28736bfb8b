/// A mistake of the driver, planted in every host of a world to see that the suites notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing that is to be persisted reaches the disk.
    LosePersist,
    /// It reaches the disk when the next thing is persisted: what depends on it has left by then.
    LatePersist,
    /// One in four changes of the tables is not published.
    LoseTables,
    /// The tables that are published are the last but one.
    LateTables,
    /// One in fifty writes is lost.
    LoseWrites,
    /// One in fifty writes is done twice.
    RepeatWrites,
    /// Nobody says how many bytes were written.
    SilentWritten,
    /// Overlay control frames do not reach the node.
    LoseSpecials,
    /// MACs that are seen do not reach the node.
    LoseMacs,
    /// One in ten frames is injected twice.
    InjectTwice,
    /// One in ten frames comes back to its sender.
    Echo,
    /// One in three timers never fires.
    LoseTimers,
    /// The node is woken each 100 ms.
    Insomnia,
    /// Nothing that address allocation stores reaches the disk.
    LoseRecords,
    /// It reaches the disk when the next thing is stored: what depends on it has left by then.
    LateRecords,
}

impl Sabotage {
    /// Those that concern address allocation.
    pub const OF_ADDRESSES: [Sabotage; 2] = [Sabotage::LoseRecords, Sabotage::LateRecords];

    /// Every other one.
    pub const ALL: [Sabotage; 13] = [
        Sabotage::LosePersist,
        Sabotage::LatePersist,
        Sabotage::LoseTables,
        Sabotage::LateTables,
        Sabotage::LoseWrites,
        Sabotage::RepeatWrites,
        Sabotage::SilentWritten,
        Sabotage::LoseSpecials,
        Sabotage::LoseMacs,
        Sabotage::InjectTwice,
        Sabotage::Echo,
        Sabotage::LoseTimers,
        Sabotage::Insomnia,
    ];
}
