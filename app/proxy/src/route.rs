//! Which requests are intercepted.

/// What is done with a request, by its path (docs/spec/containers.md A.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/containers/create`
    Create,
    /// `/containers/<container>/start` and `/restart`
    Start(&'a str),
    /// `/containers/<container>/json`
    Inspect(&'a str),
    /// `/containers/<container>/exec`
    Exec(&'a str),
    /// `/exec/<id>/json`
    InspectExec,
    /// Any other request passes as it is.
    Other,
}

impl<'a> Route<'a> {
    /// Finds the route of a request's target: a path with or without a query, or a whole URL. Names of containers are as in the path,
    /// percent-encoded.
    pub fn find(target: &'a str) -> Route<'a> {
        let path = target.split(['?', '#']).next().unwrap_or_default();
        // Docker's server takes repeated slashes for one.
        let mut parts = path_of(path).split('/').filter(|part| !part.is_empty()).peekable();
        if parts.peek().is_some_and(|part| is_version(part)) {
            parts.next();
        }
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("containers"), Some("create"), None, None) => Route::Create,
            (Some("containers"), Some(container), Some("start" | "restart"), None) => Route::Start(container),
            (Some("containers"), Some(container), Some("json"), None) => Route::Inspect(container),
            (Some("containers"), Some(container), Some("exec"), None) => Route::Exec(container),
            (Some("exec"), Some(_), Some("json"), None) => Route::InspectExec,
            _ => Route::Other,
        }
    }
}

/// The path of a whole URL, `http://host/path`.
fn path_of(target: &str) -> &str {
    match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find('/').map_or("", |slash| &rest[slash..]),
        _ => target,
    }
}

fn is_version(part: &str) -> bool {
    let number = part.strip_prefix('v').unwrap_or_default();
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_paths() {
        for (path, route) in [
            ("/v1.24/containers/create?name=c1", Route::Create),
            ("/containers/create", Route::Create),
            ("/v1/containers/create", Route::Create),
            ("//v1.41//containers/create/", Route::Create),
            ("http://docker/v1.41/containers/create", Route::Create),
            ("/v1.41/containers/web/start", Route::Start("web")),
            ("/containers/web/restart?t=1", Route::Start("web")),
            ("/containers/web/json?size=1", Route::Inspect("web")),
            ("/containers/json", Route::Other),
            ("/containers/web/exec", Route::Exec("web")),
            ("/exec/e0/json", Route::InspectExec),
            ("/exec/e0/start", Route::Other),
            ("/containers/web/attach", Route::Other),
            ("/images/create?fromImage=containers/create", Route::Other),
            ("/v1.x/containers/create", Route::Other),
            ("/x/containers/create", Route::Other),
            ("*", Route::Other),
            ("", Route::Other),
        ] {
            assert_eq!(Route::find(path), route, "{path}");
        }
    }
}
