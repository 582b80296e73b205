package conntrack

// AskForEach has Forget ask for the connections of each address, as if there were
// very many, until the function that it returns is called.
func AskForEach() (end func()) {
	before := connectionsPerPass
	connectionsPerPass = 0
	return func() { connectionsPerPass = before }
}
