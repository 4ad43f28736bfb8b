//! Parameters of a request.

/// The first value of a parameter in the query of a request's target, decoded; empty without one.
pub(crate) fn parameter(target: &str, name: &str) -> String {
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let query = query.split('#').next().unwrap_or_default();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| decode(key) == name).map(|(_, value)| decode(value)).next().unwrap_or_default()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let escaped = tail.first().and_then(hex).zip(tail.get(1).and_then(hex));
        let (byte, tail) = match (first, escaped) {
            (b'%', Some((high, low))) => (high << 4 | low, &tail[2..]),
            (b'+', _) => (b' ', tail),
            _ => (*first, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_query() {
        for (target, name) in [
            ("/containers/create?name=c1", "c1"),
            ("/containers/create?platform=x&name=c%31&name=other", "c1"),
            ("/containers/create?name=a+b%2Fc%zz", "a b/c%zz"),
            ("/containers/create?names=c1", ""),
            ("/containers/create?name", ""),
            ("/containers/create", ""),
        ] {
            assert_eq!(parameter(target, "name"), name, "{target}");
        }
    }
}
