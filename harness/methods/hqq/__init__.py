"""Methods by HQQ."""
