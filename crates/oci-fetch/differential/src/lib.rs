//! `oci-fetch` beside `oci-client`: there are only tests here.
