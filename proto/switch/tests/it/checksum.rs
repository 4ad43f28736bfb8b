use proptest::prelude::*;
use weave_switch::checksum::Sum;

use crate::packet::naive_sum;

#[test]
fn sum_of_the_rfc_example() {
    // The example of RFC 1071 section 3.
    let sum = Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
    assert_eq!(sum.folded(), 0xddf2);
    assert_eq!(sum.checksum(), 0x220d);
    assert_eq!(sum.word(0x220d).folded(), 0xffff);
    assert!(sum.word(0x220d).is_valid() && !sum.word(0x220e).is_valid());
    assert_eq!(sum.word(0x220d).checksum(), 0);
    assert_eq!(sum.word(0x220d).checksum_udp(), 0xffff);
    assert_eq!(sum.checksum_udp(), 0x220d);
}

#[test]
fn carries_are_added_at_every_position() {
    for len in 0..300 {
        assert_eq!(Sum::ZERO.bytes(&vec![0xff; len]).folded(), naive_sum(&vec![0xff; len]), "{len}");
    }
    // Folding 32 bits carries once more.
    for word in [0x0001, 0x0100] {
        assert_eq!(Sum::ZERO.bytes(&[0xff; 4]).bytes(&[0xff; 4]).word(word).folded(), word);
    }
    // As many bytes as a datagram can have, many times over.
    let mut sum = Sum::ZERO;
    for _ in 0..5000 {
        sum = sum.bytes(&[0xff; 65534]);
    }
    assert_eq!(sum.folded(), 0xffff);
}

#[test]
fn pseudo_headers_are_included() {
    let (a, b) = ([10, 2, 0, 1], [10, 40, 0, 3]);
    let sum = Sum::ZERO.pseudo_v4(a.into(), b.into(), 6, 0x1234);
    assert_eq!(sum.folded(), naive_sum(&[10, 2, 0, 1, 10, 40, 0, 3, 0, 6, 0x12, 0x34]));
    let sum = Sum::ZERO.pseudo_v6([3; 16].into(), [200; 16].into(), 58, 0x0001_2345);
    let naive = [[3; 16].as_slice(), &[200; 16], &[0, 1, 0x23, 0x45, 0, 0, 0, 58]].concat();
    assert_eq!(sum.folded(), naive_sum(&naive));
}

proptest! {
    #[test]
    fn agrees_with_the_simple_sum(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0usize..1000) {
        let expected = naive_sum(&bytes);
        prop_assert_eq!(Sum::ZERO.bytes(&bytes).folded(), expected);
        let (a, b) = bytes.split_at((cut * 2).min(bytes.len()));
        prop_assert_eq!(Sum::ZERO.bytes(a).bytes(b).folded(), expected);
        prop_assert_eq!(Sum::ZERO.word(0x8001).bytes(&bytes).folded(), naive_sum(&[&[0x80, 1], &bytes[..]].concat()));
    }
}
