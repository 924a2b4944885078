"""pysof, SQL on FHIR in Rust, on a folder of Observations; runs in an environment of its own: `python ingest_pysof.py FOLDER OUT`.

Prints CPU and wall seconds and the peak MiB of this process as JSON. The view holds the fields of the DuckDB projection without components.
"""

import json
import resource
import sys
import time
from pathlib import Path

import pysof

COLUMNS = {
    "id": "getResourceKey()",
    "patient": "subject.getReferenceKey(Patient)",
    "status": "status",
    "effective": "effective.ofType(dateTime)",
    "issued": "issued",
    "value": "value.ofType(Quantity).value",
    "unit": "value.ofType(Quantity).code",
}
CODING = {"forEachOrNull": "code.coding", "column": [{"name": "system", "path": "system"}, {"name": "code", "path": "code"}]}
VIEW = {
    "resourceType": "ViewDefinition",
    "status": "active",
    "resource": "Observation",
    "select": [{"column": [{"name": name, "path": path} for name, path in COLUMNS.items()]}, CODING],
}

if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), sys.argv[2]
    began = time.perf_counter(), time.process_time()
    for path in sorted(folder.iterdir()):
        pysof.process_ndjson_to_file(VIEW, str(path), out, "csv")
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    print(json.dumps({"cpu": cpu, "wall": wall, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
