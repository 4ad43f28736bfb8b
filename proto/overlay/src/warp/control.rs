//! The key exchange of a connection, and what follows (docs/spec/warp.md).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use weave_types::{Instant, TokenBucket};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::udp::aead::{Cipher, KeyLimits, KeyMaterial, Keys};
use crate::udp::{ControlMessageError, Output, Session, SessionConfig, UdpControl, UdpControlConfig};

/// Tag of the control message with the public key. The others are those of [`UdpControl`].
const KEY: u8 = 0;
/// First byte of that message.
const VERSION: u8 = 1;
/// Version, preferred cipher, index, public key. What follows is ignored.
const KEY_LEN: usize = 38;

/// Parameters of a [`WarpControl`].
#[derive(Clone)]
pub struct WarpControlConfig {
    /// Names and numbers. Its key is not used.
    pub session: SessionConfig,
    /// The key of the mesh connection, if there is a password: only who knows it gets the keys of warp.
    pub mesh_key: Option<Zeroizing<[u8; 32]>>,
    /// Our UDP address ([`UdpControlConfig::local`]).
    pub local: SocketAddr,
    /// The remote address of the TCP connection.
    pub remote: SocketAddr,
    /// A random private key, for this connection alone.
    pub private_key: Zeroizing<[u8; 32]>,
    /// A number by which this peer finds the connection of a datagram: random, and different for each connection.
    pub index: u32,
    /// The cipher that is faster here.
    pub preferred: Cipher,
    /// When keys are replaced.
    pub limits: KeyLimits,
    /// [`UdpControl::with_liveness`].
    pub liveness: bool,
    /// [`UdpControl::with_segmentation_test`].
    pub segmentation: bool,
}

/// The control state machine of warp on one connection. Its outputs are those of [`UdpControl`].
pub struct WarpControl {
    state: State,
    index: u32,
    /// Our message with the public key.
    key_message: Vec<u8>,
    confirmed: bool,
    outputs: VecDeque<Output>,
}

enum State {
    /// The neighbour's public key has not arrived.
    Waiting(Box<WarpControlConfig>),
    Running(Box<UdpControl>),
    Failed,
}

impl WarpControl {
    /// Creates the state machine, which waits for [`confirm`](WarpControl::confirm).
    pub fn new(config: WarpControlConfig) -> WarpControl {
        let public = PublicKey::from(&StaticSecret::from(*config.private_key));
        let index = config.index;
        let key_message =
            [&[VERSION, config.preferred as u8][..], &index.to_be_bytes(), public.as_bytes()].concat();
        WarpControl {
            state: State::Waiting(Box::new(config)),
            index,
            key_message,
            confirmed: false,
            outputs: VecDeque::new(),
        }
    }

    /// The index in the datagrams for this peer.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The state machine of the path, once there are keys.
    pub fn path_control(&self) -> Option<&UdpControl> {
        match &self.state {
            State::Running(control) => Some(control),
            State::Waiting(_) | State::Failed => None,
        }
    }

    /// The same, for inputs about the path.
    pub fn path_control_mut(&mut self) -> Option<&mut UdpControl> {
        match &mut self.state {
            State::Running(control) => Some(control),
            State::Waiting(_) | State::Failed => None,
        }
    }

    /// The mesh has accepted the connection: starts sending.
    pub fn confirm(&mut self, now: Instant) {
        if self.confirmed {
            return;
        }
        self.confirmed = true;
        let body = std::mem::take(&mut self.key_message);
        self.outputs.push_back(Output::Control { tag: KEY, body });
        if let State::Running(control) = &mut self.state {
            control.confirm(now);
        }
    }

    /// Handles a control message that arrived over the mesh connection.
    pub fn handle_control(&mut self, tag: u8, body: &[u8], now: Instant) -> Result<(), WarpControlError> {
        match &mut self.state {
            State::Running(control) if tag != KEY => Ok(control.handle_control(tag, body, now)?),
            State::Waiting(config) if tag == KEY => {
                match exchange(config, body) {
                    Ok(control) => self.run(control, now),
                    Err(error) => {
                        self.state = State::Failed;
                        self.outputs.push_back(Output::Failed(error.to_string()));
                    }
                }
                Ok(())
            }
            State::Failed => Ok(()),
            State::Running(_) | State::Waiting(_) => Err(WarpControlError::OutOfOrder(tag)),
        }
    }

    fn run(&mut self, mut control: UdpControl, now: Instant) {
        // The data threads need the session before the neighbour's first datagram.
        self.outputs.push_back(Output::PathChanged);
        if self.confirmed {
            control.confirm(now);
        }
        self.state = State::Running(Box::new(control));
    }

    /// When to call [`handle_timeout`](WarpControl::handle_timeout), and the reason.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.path_control()?.poll_timeout()
    }

    /// Handles all timers that are due, as [`UdpControl::handle_timeout`].
    pub fn handle_timeout(&mut self, probe_budget: &mut TokenBucket, now: Instant) {
        if let Some(control) = self.path_control_mut() {
            control.handle_timeout(probe_budget, now);
        }
    }

    /// The next output, or `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.path_control_mut()?.poll_output())
    }
}

/// Derives the keys from our private key and the neighbour's message.
fn exchange(config: &WarpControlConfig, body: &[u8]) -> Result<UdpControl, WarpControlError> {
    let message = body.first_chunk::<KEY_LEN>().ok_or(WarpControlError::ShortKey { len: body.len() })?;
    let [version, preferred, i0, i1, i2, i3, remote_public @ ..] = *message;
    if version != VERSION {
        return Err(WarpControlError::UnknownVersion(version));
    }
    let private = StaticSecret::from(*config.private_key);
    let own_public = PublicKey::from(&private).to_bytes();
    let shared = private.diffie_hellman(&PublicKey::from(remote_public));
    if !shared.was_contributory() {
        return Err(WarpControlError::WeakKey);
    }
    let both_prefer_aes = config.preferred == Cipher::Aes256Gcm && preferred == Cipher::Aes256Gcm as u8;
    let session = &config.session;
    // Those of this peer come first, unless it is the acceptor.
    fn ordered<T>(outbound: bool, own: T, remote: T) -> [T; 2] {
        if outbound { [own, remote] } else { [remote, own] }
    }
    let outbound = session.outbound;
    let material = KeyMaterial {
        shared: Zeroizing::new(shared.to_bytes()),
        mesh_key: config.mesh_key.clone(),
        cipher: if both_prefer_aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 },
        uid: session.uid,
        names: ordered(outbound, session.own, session.remote),
        public_keys: ordered(outbound, own_public, remote_public),
        indices: ordered(outbound, config.index, u32::from_be_bytes([i0, i1, i2, i3])),
        outbound,
    };
    let session = Session::with_keys(session.clone(), Keys::new(&material, config.limits));
    Ok(start(config, session))
}

fn start(config: &WarpControlConfig, session: Arc<Session>) -> UdpControl {
    let &WarpControlConfig { local, remote, liveness, segmentation, .. } = config;
    let outbound = config.session.outbound;
    let control = UdpControl::new(UdpControlConfig { session, local, remote, outbound });
    let control = if liveness { control.with_liveness() } else { control };
    if segmentation { control.with_segmentation_test() } else { control }
}

/// The neighbour sent an invalid control message. After a bad key the overlay has failed; other messages are logged and ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WarpControlError {
    /// The message with the public key is too short.
    #[error("warp key of {len} bytes")]
    ShortKey {
        /// Bytes after the tag.
        len: usize,
    },
    /// The neighbour has another version of warp.
    #[error("unknown version {0} of warp")]
    UnknownVersion(u8),
    /// The public key gives a shared secret of zero, whatever our private key is.
    #[error("warp key of low order")]
    WeakKey,
    /// The message comes before the neighbour's key, or is a second key.
    #[error("warp control message {0} out of order")]
    OutOfOrder(u8),
    /// A message about the path is invalid.
    #[error(transparent)]
    Path(#[from] ControlMessageError),
}
