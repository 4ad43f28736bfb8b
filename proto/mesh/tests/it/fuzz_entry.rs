//! Handles arbitrary bytes from a remote. The fuzz targets and the tests that replay their corpora share this module.

use std::collections::BTreeMap;

use weave_mesh::crypto::Secret;
use weave_mesh::envelope::Envelope;
use weave_mesh::features::Features;
use weave_mesh::handshake::{Handshake, HandshakeConfig, Progress, Session, encode_features};
use weave_mesh::update::{decode_update, encode_update};

/// The first byte selects password, versions, the dialling side and the size of the pieces; the rest is the stream of the
/// remote. Asserts that the size of the pieces makes no difference.
pub(crate) fn handshake(data: &[u8]) {
    let Some((&options, stream)) = data.split_first() else { return };
    let config = HandshakeConfig {
        features: BTreeMap::from([("Name".to_owned(), "02:00:00:00:00:01".to_owned())]),
        password: (options & 1 != 0).then(|| Secret::new("fuzz")).flatten(),
        min_protocol: 1 + (options >> 1 & 1),
        max_protocol: 2 - (options >> 2 & 1),
        outbound: options & 8 != 0,
        identify_first: options & 16 != 0,
    };
    let run = |size: usize| {
        let mut handshake = Handshake::new(config.clone(), [0x55; 32]);
        let mut session: Option<Box<Session>> = None;
        let (mut written, mut messages) = (Vec::new(), Vec::new());
        for piece in stream.chunks(size) {
            match &mut session {
                Some(session) => session.push(piece),
                None => match handshake.handle_bytes(piece) {
                    Ok(Progress::Done(done)) => session = Some(done),
                    Ok(_) => {}
                    Err(error) => {
                        written.extend(handshake.poll_write().unwrap_or_default());
                        return (written, messages, error.to_string());
                    }
                },
            }
            written.extend(handshake.poll_write().unwrap_or_default());
            if let Some(Err(error)) = session.as_mut().map(|session| drain(session, &mut messages)) {
                return (written, messages, error);
            }
        }
        let end = match session {
            Some(session) => format!("{session:?}"),
            None => handshake.handle_eof().to_string(),
        };
        (written, messages, end)
    };
    assert_eq!(run(usize::from(options >> 4) + 1), run(stream.len().max(1)));
}

fn drain(session: &mut Session, messages: &mut Vec<Vec<u8>>) -> Result<(), String> {
    while let Some(message) = session.next().map_err(|error| error.to_string())? {
        messages.push(message);
    }
    Ok(())
}

/// A session without password whose remote has sent no message yet.
fn session(version: u8) -> Session {
    let config = HandshakeConfig { max_protocol: version, ..HandshakeConfig::default() };
    let mut handshake = Handshake::new(config, [0; 32]);
    let mut stream = vec![b'w', b'e', b'a', b'v', b'e', 1, version];
    let features = encode_features(&BTreeMap::new());
    if version == 2 {
        stream.push(0);
        stream.extend((features.len() as u32).to_be_bytes());
    }
    stream.extend(features);
    match handshake.handle_bytes(&stream) {
        Ok(Progress::Done(session)) => *session,
        other => panic!("{other:?}"),
    }
}

/// The first byte selects the version and the size of the pieces; the rest is the stream of the remote after the
/// handshake. Asserts that the size of the pieces makes no difference, and that received messages can be sent again.
pub(crate) fn session_frames(data: &[u8]) {
    let Some((&options, stream)) = data.split_first() else { return };
    let version = 1 + (options & 1);
    let run = |size: usize| {
        let mut session = session(version);
        let mut messages = Vec::new();
        for piece in stream.chunks(size) {
            session.push(piece);
            if let Err(error) = drain(&mut session, &mut messages) {
                assert_eq!(drain(&mut session, &mut messages), Err(error.clone()));
                return (messages, Some(error));
            }
        }
        (messages, None)
    };
    let (messages, error) = run(usize::from(options >> 1) + 1);
    assert_eq!((&messages, &error), (&run(stream.len().max(1)).0, &run(stream.len().max(1)).1));

    let (mut sender, mut receiver) = (session(version), session(version));
    for message in messages {
        match sender.seal(&message) {
            Ok(frame) => receiver.push(&frame),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(receiver.next(), Ok(Some(message)));
    }
}

/// Decodes a topology update. Asserts that it encodes and decodes to the same records.
pub(crate) fn topology_update(data: &[u8]) {
    let Ok(update) = decode_update(data) else { return };
    let again = encode_update(&update.records);
    match decode_update(&again) {
        Ok(second) => assert_eq!((second.records, second.dropped), (update.records, 0)),
        Err(error) => panic!("{error}"),
    }
}

/// Decodes a gossip envelope of either form. Asserts that it encodes and decodes to the same envelope.
pub(crate) fn envelope(data: &[u8]) {
    for unicast in [false, true] {
        let Ok(envelope) = Envelope::decode(data, unicast) else { continue };
        let again = envelope.encode();
        assert_eq!(Envelope::decode(&again, unicast), Ok(envelope));
    }
}

/// Decodes a features message. Asserts that accepted features encode and decode to the same features.
pub(crate) fn feature_map(data: &[u8]) {
    let mut stream = b"weave\x01\x02\x00".to_vec();
    stream.extend((data.len() as u32).to_be_bytes());
    stream.extend(data);
    let mut handshake = Handshake::new(HandshakeConfig::default(), [0; 32]);
    let Ok(Progress::Done(session)) = handshake.handle_bytes(&stream) else { return };
    let Ok(features) = Features::from_map(&session.remote_features) else { return };
    assert_eq!(Features::from_map(&features.to_map()), Ok(features));
}
