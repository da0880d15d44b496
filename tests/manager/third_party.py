"""Uses a manager through the API client of `truss`, in an environment that has it.

The argument is the manager's address; the key comes on standard input. Prints
JSON. Only the base URL is replaced, which that client has in a table of hosts.
"""

import json
import sys

import requests
from truss.remote.baseten import api as baseten
from truss.remote.baseten.auth import ApiKeyCredential, AuthService

address, key = sys.argv[1], sys.stdin.read().strip()


def client_for(key):
    baseten.API_URL_MAPPING[address] = address
    return baseten.BasetenApi(address, AuthService(ApiKeyCredential(api_key=key)))


client = client_for(key)
results = {"base": client.rest_api_url}
results["made"] = client.upsert_secret("hf_access_token", "first value of the token")
results["again"] = client.upsert_secret("hf_access_token", "second value of the token")
results["listed"] = client.get_all_secrets()
team = requests.get(
    f"{client.rest_api_url}/v1/teams", headers={"Authorization": f"Api-Key {key}"}, timeout=30
).json()["teams"][0]["id"]
results["team"] = client.upsert_team_secret(team, "db_password", "value of the password")
results["team_listed"] = client.get_team_secrets(team)
results["deleted"] = client._rest_api_client.delete("v1/secrets/db_password")
made = client.create_api_key(baseten.APIKeyCategory.PERSONAL, "from truss")
results["key"] = sorted(made)
results["with_it"] = client_for(made["api_key"]).get_all_secrets()
try:
    client_for("nonsense").get_all_secrets()
except requests.HTTPError as error:
    results["bad_key"] = error.response.status_code
try:
    client.upsert_secret("not a name", "value")
except requests.HTTPError as error:
    results["bad_name"] = error.response.status_code
print("RESULT " + json.dumps(results))
