"""From a call of a public function to the launches of a variant, on arrays of four libraries."""
